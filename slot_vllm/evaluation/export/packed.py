"""The packed form of a run: all but the texts of its benchmark, small enough to be committed.

It holds ids, content hashes, scores and completions. Reports, rescoring and ``--resume`` read it as
they read the run itself; where they need problems or gold answers, these come from the task's data.
"""

import gzip
import json
from collections.abc import Iterable
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
from slot_vllm.evaluation.inspection_record import Inspection, TokenShift
from slot_vllm.evaluation.record import RunRecord, Sample
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
    samples = SampleFile(directory / SAMPLES).read()
    inspections = read_inspections(directory)
    settings = _settings(directory / CONFIG)
    output.mkdir(parents=True, exist_ok=True)
    files = [output / RESULTS, output / (SAMPLES + PACKED)]
    write_whole(files[0], _results(results))
    write_whole(files[1], gzip.compress(_lines(samples).encode(), mtime=0))
    told = _inspections(inspections) if inspections else None
    for file, text in ((output / CONFIG, settings), (output / INSPECTION, told)):
        if text is not None:
            write_whole(file, text)
            files.append(file)
    return files


def _results(results: RunRecord) -> str:
    config = RunSettings.model_validate(without_system_prompt(results.config.as_written()))
    return _compact(changed(results, config=config).as_json())


def _settings(path: Path) -> str | None:
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    heading = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    values = yaml.safe_load(text)
    return heading + yaml.safe_dump(without_system_prompt(values), sort_keys=False)


def _lines(samples: Iterable[Sample]) -> str:
    # Answers to one problem stand together, because what they share then takes no room.
    together = sorted(samples, key=lambda sample: (sample.task, sample.id, sample.sample))
    return "".join(_compact(_packed(sample).model_dump()) for sample in together)


def _packed(sample: Sample) -> Sample:
    losses = (sample.first_loss, sample.last_loss)
    first, last = (None if loss is None else round(loss, _DIGITS) for loss in losses)
    return changed(sample, prompt=None, gold=None, first_loss=first, last_loss=last)


def _inspections(inspections: Iterable[Inspection]) -> str:
    """Without what moved on each prompt, which tells its words."""
    short = [
        changed(one, prompts=[], raised=_short(one.raised), lowered=_short(one.lowered))
        for one in inspections
    ]
    return _compact([one.model_dump() for one in short])


def _short(tokens: Iterable[TokenShift]) -> list[TokenShift]:
    return [changed(token, shift=round(token.shift, _DIGITS)) for token in tokens]


def _compact(values: Any) -> str:
    return json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n"
