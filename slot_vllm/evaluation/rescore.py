"""``slot-vllm rescore``: stored answers scored again by today's scorers, without a model."""

from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation import stored_tasks, tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.directory import RESULTS, read_results, write_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.plan import Plan
from slot_vllm.evaluation.record import RunRecord, Sample
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.evaluation.scoring import unscored
from slot_vllm.evaluation.tasks import EvaluationTask

RESCORED = "results.rescored.json"
# The prompt of a run whose release did not say it.
NOT_RECORDED = "not recorded"


def rescore(directory: Path, task: str | None = None) -> list[str]:
    """Writes ``results.rescored.json`` beside ``results.json`` and returns, in words, what changed.

    task: one of the run's, which alone is then scored; or, where the run has one task, another that
    scores its answers, from the same data. Raises ConfigError; then nothing is written.
    """
    old = read_results(directory / RESULTS)
    config = stored_tasks.configuration(old, directory / RESULTS)
    samples = SampleFile(directory / SAMPLES).read()
    loaded = tasks.load(config)
    # What was answered is known by the task that asked it.
    of_run = [one for one in loaded if task in (None, one.name)]
    scored = asked = of_run or loaded
    samples = [sample for sample in samples if sample.task in {one.name for one in asked}]
    stored_tasks.documents(asked, samples, directory)
    if task is not None and not of_run:
        config, scored = _as(task, config, loaded)
        [other] = scored
        samples = [changed(s, task=other.name, item_sha256=None, gold=None) for s in samples]
    asking = {one.name: by.name for one, by in zip(scored, asked, strict=True)}
    plan = Plan(config, scored, samples)
    for part in plan.parts:
        part.score_stored()
    for part in plan.wanted:
        if part.pending:
            raise ConfigError(
                f"{directory}: {part.arm.name} has no answers to {len(part.pending)} of "
                f"{len(part.docs)} problems of {part.task.name}; rescore needs all of them"
            )
    today = plan.record()
    # Today's scorers, with the prompt and the limit that the answers were asked with.
    definitions = {}
    for name, definition in today.tasks.items():
        asked_as = old.tasks.get(asking[name])
        prompt, limit = (
            (asked_as.prompt, asked_as.token_limit) if asked_as else (NOT_RECORDED, None)
        )
        definitions[name] = changed(definition, prompt=prompt, token_limit=limit)
    removed = {row.name: row.removed for row in old.arms}
    new = changed(
        today,
        arms=[changed(row, removed=removed.get(row.name, {})) for row in today.arms],
        tasks=definitions,
        config=changed(old.config, tasks=today.config.tasks),
        versions=old.versions,
        machine=old.machine,
    )
    said = _changes(old, new, samples, [s for p in plan.wanted for s in p.answered])
    if new.unscored[0]:
        said.append(unscored(*new.unscored))
    return [*said, str(write_results(new, directory / RESCORED))]


def _as(
    name: str, config: RunConfig, loaded: Sequence[EvaluationTask]
) -> tuple[RunConfig, list[EvaluationTask]]:
    there = ", ".join(task.name for task in loaded)
    if len(loaded) != 1 or len(config.tasks) != 1:
        raise ConfigError(f"--task {name}: the run has several tasks; allowed: one of {there}")
    other = changed(config, tasks=[changed(config.tasks[0], name=name)])
    found = tasks.load(other)
    if len(found) != 1:
        raise ConfigError(f"--task {name}: it is a group of tasks; allowed: a single one")
    missing = {doc.id for doc in loaded[0].docs} - {doc.id for doc in found[0].docs}
    if missing:
        raise ConfigError(f"--task {name}: it has no problem {min(missing)}, which {there} has")
    return other, found


def _changes(
    old: RunRecord, new: RunRecord, before: Sequence[Sample], after: Sequence[Sample]
) -> list[str]:
    """A line per task and metric."""
    known = {sample.key: sample.scores for sample in before}
    values = {
        (row.task, name, row.name): metric.value
        for row in old.arms
        for name, metric in row.metrics.items()
    }
    lines = []
    for task, metric in dict.fromkeys((row.task, name) for row in new.arms for name in row.metrics):
        arms = [
            f"{row.name} {_moved(values.get((task, metric, row.name)), row.metrics[metric].value)}"
            for row in new.arms
            if row.task == task and metric in row.metrics
        ]
        moved = [
            known[sample.key][metric] != sample.scores[metric]
            for sample in after
            if sample.task == task and metric in sample.scores.keys() & known[sample.key].keys()
        ]
        said = f"{sum(moved)} of {len(moved)} scores changed" if moved else "new"
        lines.append(f"{task}, {metric}: {said}; {', '.join(arms)}")
    return lines


def _moved(before: float | None, after: float | None) -> str:
    now = "-" if after is None else f"{after:.4f}"
    return now if before is None or before == after else f"{before:.4f} -> {now}"
