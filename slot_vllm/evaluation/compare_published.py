"""A run beside the published runs of its model, task by task and arm by arm."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from slot_vllm.evaluation import published_table
from slot_vllm.evaluation.config import ConfigError
from slot_vllm.evaluation.published_table import CRITICAL, PublishedRun

_WIDE = 200
_COLUMNS = ("task", "model", "steps", "lr", "published", "ours", "difference", "chance")
_TEXTS = 2
_NOTES = (
    "±: standard errors. Both sides answer the same problems, but problem by problem only ours is "
    "known: the difference's error, as of independent problems, is too large, if anything.",
    "A published value is one run. With SLOT its setting is another for each model and task, as if "
    "the best of several had been chosen on the test problems: then it is too high on average.",
    "Of 20 differences about one is beyond chance by chance alone.",
)


class Entry(BaseModel):
    """What is read here of an entry of ``results.json``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    task: str
    steps: int
    lr: float
    samples: int
    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None

    @property
    def error(self) -> float | None:
        """lighteval's standard error; where it has none, or 0 because all problems score alike,
        half of the interval, divided by 1.96. None where there is neither."""
        if self.stderr:
            return self.stderr
        return (self.interval[1] - self.interval[0]) / 2 / CRITICAL if self.interval else None


class _Config(BaseModel):
    model: str


class _Results(BaseModel):
    arms: list[Entry]
    config: _Config


@dataclass(frozen=True)
class Line:
    """An arm's value on a task beside one published run of the same setting."""

    published: PublishedRun
    ours: Entry
    value: float
    error: float

    @property
    def difference(self) -> float:
        """Ours minus the published value."""
        return self.value - self.published.accuracy

    @property
    def stderr(self) -> float:
        """Of the difference, as of two sides that answer independent problems."""
        return math.hypot(self.error, self.published.stderr)

    @property
    def words(self) -> str:
        z = self.difference / self.stderr
        if abs(z) < CRITICAL:
            said = f"within chance (z = {z:+.2f})"
        else:
            said = f"{'higher' if z > 0 else 'lower'} than chance allows (z = {z:+.2f})"
        if self.ours.samples != self.published.problems:
            said += f"; ours: {self.ours.samples} problems of {self.published.problems}"
        return said


@dataclass(frozen=True)
class Comparison:
    """``alone``: in words, the arms and tasks that have no published run beside them."""

    lines: list[Line]
    alone: list[str]


def compare(results: Path, table: Path | None = None) -> Comparison:
    """Every arm of a run's ``results.json`` beside each published run of its task and setting.

    table: the published runs; by default the repository's. Raises ConfigError, also for a model
    that has no published run.
    """
    run = _read(results)
    published = published_table.read(table)
    of_model = [row for row in published if row.is_of(run.config.model)]
    if not of_model:
        there = ", ".join(dict.fromkeys(row.model for row in published))
        raise ConfigError(
            f"{results}: config.model={run.config.model!r}: no published run is of such a model; "
            f"there are: {there}"
        )
    lines, alone = [], []
    for entry in run.arms:
        rows = [row for row in of_model if _same_setting(row, entry)]
        arm = f"{entry.task}, {_arm(entry)}"
        if entry.value is None or entry.error is None:
            alone.append(f"{arm}: ours has no {'value' if entry.value is None else 'interval'}")
        elif not rows:
            alone.append(f"{arm}: no published run; there are: {_settings(of_model, entry.task)}")
        else:
            lines += [Line(row, entry, entry.value, entry.error) for row in rows]
    return Comparison(lines, alone)


def show(comparison: Comparison) -> None:
    """Prints the table, what stands alone, and how to read it."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDE
    if comparison.lines:
        console.print(_table(comparison.lines))
    for text in [*comparison.alone, *(_NOTES if comparison.lines else ())]:
        console.print(text, highlight=False, markup=False)


def _read(path: Path) -> _Results:
    try:
        return _Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "all"
        raise ConfigError(f"{path}: not the results of a run: {key}: {problem['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not the results of a run: {error}") from None


def _same_setting(row: PublishedRun, entry: Entry) -> bool:
    if row.task != entry.task or row.steps != entry.steps:
        return False
    return not row.steps or math.isclose(row.lr, entry.lr)


def _arm(entry: Entry) -> str:
    return f"{entry.name} ({_setting(entry.steps, entry.lr)})"


def _setting(steps: int, lr: float) -> str:
    return f"steps {steps}, lr {lr:g}" if steps else "steps 0"


def _settings(rows: Sequence[PublishedRun], task: str) -> str:
    settings = [_setting(row.steps, row.lr) for row in rows if row.task == task]
    return "; ".join(dict.fromkeys(settings)) or "none of this task"


def _table(lines: Sequence[Line]) -> Table:
    grid = Table(box=SIMPLE, padding=(0, 1))
    for i, name in enumerate(_COLUMNS):
        text = i < _TEXTS or i == len(_COLUMNS) - 1
        # Where it is narrow, text is folded, never cut.
        grid.add_column(name, overflow="fold", justify="left" if text else "right")
    for line in lines:
        row = line.published
        grid.add_row(
            row.task,
            row.model,
            str(row.steps),
            f"{row.lr:g}" if row.steps else "-",
            f"{row.accuracy:.4f} ± {row.stderr:.4f}",
            f"{line.value:.4f} ± {line.error:.4f}",
            f"{line.difference:+.4f} ± {line.stderr:.4f}",
            line.words,
        )
    return grid
