"""The same arms in two runs, on the problems that both answered."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slot_vllm.evaluation.comparison import Comparison, compare
from slot_vllm.evaluation.report.stored_run import Part, StoredRun


@dataclass(frozen=True)
class ArmAcrossRuns:
    """``comparison`` is the second run's score minus the first's, over ``problems`` problems."""

    first: Part
    second: Part
    problems: int
    comparison: Comparison


@dataclass(frozen=True)
class TaskAcrossRuns:
    """remarks: in words, what could not be compared."""

    task: str
    arms: list[ArmAcrossRuns]
    remarks: list[str]


@dataclass(frozen=True)
class TwoRuns:
    """settings: the keys of the configurations that differ, with both values."""

    first: str
    second: str
    tasks: list[TaskAcrossRuns]
    settings: list[tuple[str, Any, Any]]


def compare_runs(first: StoredRun, second: StoredRun) -> TwoRuns:
    """Task by task; a task that only one run has is remarked on."""
    tasks = list(dict.fromkeys([*first.tasks, *second.tasks]))
    return TwoRuns(
        first=first.label,
        second=second.label,
        tasks=[_task(task, first, second) for task in tasks],
        settings=_settings(first, second),
    )


def _task(task: str, first: StoredRun, second: StoredRun) -> TaskAcrossRuns:
    ours = {part.arm: part for part in first.of_task(task)}
    theirs = {part.arm: part for part in second.of_task(task)}
    if not ours or not theirs:
        only = first.label if ours else second.label
        return TaskAcrossRuns(task, [], [f"Only {only} has this task: nothing is compared."])
    names = [name for name in ours if name in theirs]
    if not names:
        return TaskAcrossRuns(task, [], ["No arm has the same name in both runs."])
    remarks: list[str] = []
    here: dict[str, dict[str, float]] = {}
    there: dict[str, float] = {}
    for name in names:
        pair = ours[name], theirs[name]
        remark = _incomparable(*pair)
        shared = set() if remark else _shared(*pair)
        if not shared and not remark:
            remark = "no problem with the same id and prompt was answered in both runs."
        if remark:
            remarks.append(f"{name}: {remark}")
            continue
        # An arm's own name before each problem's: every arm has a reference of its own, and all
        # of them are corrected together.
        here[name] = {f"{name} {problem}": theirs[name].scores[problem] for problem in shared}
        there |= {f"{name} {problem}": ours[name].scores[problem] for problem in shared}
    arms = [
        ArmAcrossRuns(
            ours[name],
            theirs[name],
            len(here[name]),
            _named(comparison, task, name, first.label, second.label),
        )
        for name, comparison in compare(task, here, there).items()
    ]
    return TaskAcrossRuns(task, arms, remarks)


def _named(comparison: Comparison, task: str, arm: str, first: str, second: str) -> Comparison:
    """With words that name the runs in place of the baseline."""
    said = comparison.words.removeprefix(f"{task}, {arm} against the baseline: ")
    return replace(comparison, words=f"{task}, {arm}, {second} against {first}: {said}")


def _incomparable(first: Part, second: Part) -> str | None:
    if first.entry and second.entry and first.entry.metric != second.entry.metric:
        return f"scored by {first.entry.metric} in one run, by {second.entry.metric} in the other."
    if not (_is_mean(first) and _is_mean(second)):
        return "its metric is not the mean of its problems' scores."
    return None


def _is_mean(part: Part) -> bool:
    """Whether the part's value is the mean of its problems' scores, as far as can be told: after
    a sweep with a split the value is of some of the problems."""
    scores, entry = part.scores, part.entry
    if not scores:
        return False
    if entry is None or entry.value is None or entry.samples != len(part.problems):
        return entry is None or entry.value is not None
    return math.isclose(sum(scores.values()) / len(scores), entry.value, abs_tol=1e-9)


def _shared(first: Part, second: Part) -> set[str]:
    both = first.scores.keys() & second.scores.keys()
    return {i for i in both if first.problems[i].prompt == second.problems[i].prompt}


def _settings(first: StoredRun, second: StoredRun) -> list[tuple[str, Any, Any]]:
    ours, theirs = (dict(_flat(run.results.config)) for run in (first, second))
    keys = [key for key in {**ours, **theirs} if key != "name"]
    return [(k, ours.get(k), theirs.get(k)) for k in keys if ours.get(k) != theirs.get(k)]


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        items = [(item.get("name", index), item) for index, item in enumerate(value)]
    else:
        return [(key, value)]
    return [pair for k, v in items for pair in _flat(v, f"{key}.{k}" if key else str(k))]
