"""A run beside the published runs of its model, task by task and arm by arm."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from rich.table import Table

from slot_vllm.evaluation import as_published, published_table, statistics
from slot_vllm.evaluation.directory import read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.published_table import CRITICAL, PublishedRun
from slot_vllm.evaluation.record import Result, RunRecord
from slot_vllm.evaluation.table import new_table, terminal

# Tasks of these names are the published ones (`slot_vllm.evaluation.benchmarks`).
PREFIX = "published:"
_COLUMNS = ("task", "model", "steps", "lr", "published", "ours", "difference", "chance")
_TEXTS = ("task", "model", "chance")
_NOTES = (
    "±: standard errors. Both sides answer the same problems, but problem by problem only ours is "
    "known: the difference's error, as of independent problems, is too large, if anything.",
    "A published value is one run. With SLOT its setting is another for each model and task, as if "
    "the best of several had been chosen on the test problems: then it is too high on average.",
    "With SLOT neither the AdamW constants of a published run are known, the paper's or those of "
    "the published vLLM code (preset paper-vllm), nor how delta was rounded: arms of either kind "
    "and of either rounding stand beside it. That code also shares one delta among the prompts "
    "that it reads together, which ours never does.",
    "Of 20 differences about one is beyond chance by chance alone.",
)


@dataclass(frozen=True)
class Line:
    """An arm's value on a task beside one published run of the same setting."""

    published: PublishedRun
    ours: Result
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
        setting = as_published.in_words(self.ours.arm) if self.ours.arm else ""
        return f"{said}; ours: {setting}" if setting else said


@dataclass(frozen=True)
class BesidePublished:
    """``alone``: in words, the arms and tasks that have no published run beside them.

    needed: in words, how many problems would tell what is published with SLOT from what is
    published without.
    """

    lines: list[Line]
    alone: list[str]
    needed: list[str]


def compare(results: Path, table: Path | None = None) -> BesidePublished:
    """Every arm of a run's ``results.json`` beside the published runs of its model that were run
    as it was: by its task's definition, its decoding, its model and all of its settings.

    table: the published runs; by default the repository's. Raises ConfigError, also for a model
    that has no published run.
    """
    run = read_results(results)
    published = published_table.read(table)
    model = run.config.published_model or run.config.model
    if not model:
        raise ConfigError(f"{results}: config.model: it says no model")
    of_model = [row for row in published if row.is_of(PurePath(model).name)]
    if not of_model:
        key = "published_model" if run.config.published_model else "model"
        there = ", ".join(dict.fromkeys(row.model for row in published))
        raise ConfigError(
            f"{results}: config.{key}={model!r}: no published run is of such a model; "
            f"there are: {there}"
        )
    lines, alone = [], []
    for entry in run.arms:
        said = _apart(run, entry, of_model)
        rows = [row for row in of_model if _same_setting(row, entry)]
        error = _error(entry)
        if said is None and entry.value is not None and error is not None:
            lines += [Line(row, entry, entry.value, error) for row in rows]
        else:
            has_none = f"ours has no {'value' if entry.value is None else 'interval'}"
            arm = f"{entry.name} ({_setting(entry.steps, entry.lr)})"
            alone.append(f"{entry.task}, {arm}: {said or has_none}")
    tasks = {entry.task.removeprefix(PREFIX) for entry in run.arms}
    return BesidePublished(lines, alone, _needed([row for row in of_model if row.task in tasks]))


def command(results: Path, published: Path | None) -> None:
    """``slot-vllm compare-published``. Raises ConfigError."""
    show(compare(results, published))


def show(found: BesidePublished) -> None:
    """Prints the table, what stands alone, and how to read it."""
    console = terminal()
    if found.lines:
        console.print(_table(found.lines))
    for text in [*found.alone, *found.needed, *(_NOTES if found.lines else ())]:
        console.print(text, highlight=False, markup=False)


def _apart(run: RunRecord, entry: Result, of_model: Sequence[PublishedRun]) -> str | None:
    """Why no published run stands beside an arm on a task."""
    task = entry.task.removeprefix(PREFIX)
    if task not in published_table.PROBLEMS:
        return f"no published run; there are: {_settings(of_model, task)}"
    if not entry.task.startswith(PREFIX):
        return (
            f"lighteval's {entry.task} is another definition than the published runs'; "
            f"theirs is {PREFIX}{task}"
        )
    differ = [
        *as_published.other_definition(run, entry.task),
        *as_published.other_decoding(run, entry.task, of_model[0].context),
        *as_published.other_model(run.config.engine),
        *as_published.other_arm(entry),
    ]
    if differ:
        return f"not as published: {'; '.join(differ)}"
    if not any(_same_setting(row, entry) for row in of_model):
        return f"no published run; there are: {_settings(of_model, task)}"
    return None


def _needed(rows: Sequence[PublishedRun]) -> list[str]:
    """For each published run with SLOT and each without of the same task."""
    said = []
    for row, without in itertools.product(rows, rows):
        if row.steps and not without.steps and row.task == without.task:
            count = statistics.problems_needed_unpaired(row.accuracy, without.accuracy)
            told = (
                "the same value"
                if count is None
                else f"about {count} problems on each side would be needed to tell it from noise"
            )
            said.append(
                f"{row.task}, published: {row.accuracy:.4f} with {_setting(row.steps, row.lr)}, "
                f"{without.accuracy:.4f} without, of {row.problems} problems: {told}."
            )
    return said


def _error(entry: Result) -> float | None:
    """lighteval's standard error; where it has none, or 0 because all problems score alike, half
    of the interval, divided by 1.96. None where there is neither."""
    if entry.stderr:
        return entry.stderr
    return (entry.interval[1] - entry.interval[0]) / 2 / CRITICAL if entry.interval else None


def _same_setting(row: PublishedRun, entry: Result) -> bool:
    if row.task != entry.task.removeprefix(PREFIX) or row.steps != entry.steps:
        return False
    return not row.steps or math.isclose(row.lr, entry.lr)


def _setting(steps: int, lr: float) -> str:
    return f"steps {steps}, lr {lr:g}" if steps else "steps 0"


def _settings(rows: Sequence[PublishedRun], task: str) -> str:
    settings = [_setting(row.steps, row.lr) for row in rows if row.task == task]
    return "; ".join(dict.fromkeys(settings)) or "none of this task"


def _table(lines: Sequence[Line]) -> Table:
    grid = new_table(_COLUMNS, _TEXTS)
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
