"""The packed form of a run: all but the texts of its benchmark, small enough to be committed.

It holds ids, content hashes, scores and completions. Reports, rescoring and ``--resume`` read it as
they read the run itself; where they need problems or gold answers, these come from the task's data.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import yaml

from slot_vllm.evaluation.directory import (
    CONFIG,
    INSPECTION,
    RESULTS,
    read_inspections,
    read_results,
)
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.inspection_record import Inspection
from slot_vllm.evaluation.record import Sample
from slot_vllm.evaluation.run_settings import RunSettings, changed, without_system_prompt
from slot_vllm.evaluation.samples import PACKED, SAMPLES, SampleFile, write_whole

# Of losses and shifts, after the point.
_DIGITS = 4


def write(directory: Path, output: Path) -> list[Path]:
    """Writes the run's packed form into the directory ``output``. Raises ConfigError."""
    if output.resolve() == directory.resolve():
        raise ConfigError(f"{output}: it is the run's own directory; allowed: another one")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: it is there already; allowed: a new or empty directory")
    results = read_results(directory / RESULTS)
    settings = RunSettings.model_validate(without_system_prompt(results.config.as_written()))
    # Answers to one problem stand together, because what they share then takes no room.
    samples = sorted(
        SampleFile(directory / SAMPLES).read(), key=lambda one: (one.task, one.id, one.sample)
    )
    answers = "".join(_compact(_packed(sample).model_dump()) for sample in samples)
    files: dict[str, str | bytes] = {
        RESULTS: _compact(changed(results, config=settings).as_json()),
        SAMPLES + PACKED: gzip.compress(answers.encode(), mtime=0),
    }
    if (directory / CONFIG).exists():
        files[CONFIG] = _configuration((directory / CONFIG).read_text(encoding="utf-8"))
    if inspections := read_inspections(directory):
        files[INSPECTION] = _compact([_short(one).model_dump() for one in inspections])
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(output / name, content)
    return [output / name for name in files]


def _configuration(text: str) -> str:
    heading = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    return heading + yaml.safe_dump(without_system_prompt(yaml.safe_load(text)), sort_keys=False)


def _packed(sample: Sample) -> Sample:
    losses = (sample.first_loss, sample.last_loss)
    first, last = (None if loss is None else round(loss, _DIGITS) for loss in losses)
    return changed(sample, prompt=None, gold=None, first_loss=first, last_loss=last)


def _short(inspection: Inspection) -> Inspection:
    """Without what moved on each prompt, which tells its words."""
    raised, lowered = (
        [changed(token, shift=round(token.shift, _DIGITS)) for token in tokens]
        for tokens in (inspection.raised, inspection.lowered)
    )
    return changed(inspection, prompts=[], raised=raised, lowered=lowered)


def _compact(values: Any) -> str:
    return json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n"
