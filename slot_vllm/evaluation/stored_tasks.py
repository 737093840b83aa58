"""A stored run's tasks with today's data and scorers; the texts that a packed run lacks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError, valid
from slot_vllm.evaluation.record import RunRecord, Sample
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.task_definition import item_hash
from slot_vllm.evaluation.tasks import EvaluationTask
from slot_vllm.removed import of_stored_run

_NEEDED = "--resume, rescore and export need the same data"


def configuration(run: RunRecord, where: Path) -> RunConfig:
    """The run's, as ``where`` says it, without settings of its arms that were removed since.
    Raises ConfigError."""
    with valid(RunConfig, f"{where}: config: "):
        return RunConfig(**of_stored_run(run.config.as_written(), used=False))


def with_texts(run: RunRecord, samples: Sequence[Sample], where: Path) -> list[Sample]:
    """Samples with the problems and gold answers that the packed form leaves out.

    A prompt is then the problem's, without the chat template and what a control adds. Raises
    ConfigError if the data are not there or are others.
    """
    if all(sample.prompt is not None and sample.gold is not None for sample in samples):
        return list(samples)
    loaded = tasks.load(configuration(run, where))
    asked = documents(loaded, samples, where)
    return [
        changed(sample, prompt=sample.prompt or doc.query, gold=sample.gold or doc.get_golds())
        for sample, doc in zip(samples, asked, strict=True)
    ]


def documents(
    loaded: Iterable[EvaluationTask], samples: Iterable[Sample], where: Path
) -> list[Doc]:
    """The problem of each sample. Raises ConfigError if today's data have another or none."""
    by_id = {(task.name, doc.id): doc for task in loaded for doc in task.docs}
    found = []
    for sample in samples:
        doc = by_id.get((sample.task, sample.id))
        problem = f"{where}: {sample.task}, problem {sample.id}"
        if doc is None:
            raise ConfigError(f"{problem}, which was answered, is not among today's; {_NEEDED}")
        same_text = sample.item_sha256 in (None, item_hash(doc))
        if not same_text or sample.gold not in (None, doc.get_golds()):
            raise ConfigError(
                f"{problem}: the task's data have another text or gold answer than what was "
                f"answered; {_NEEDED}"
            )
        found.append(doc)
    return found
