"""The same arms in two runs, on the problems that both answered."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slot_vllm.evaluation.comparison import compare
from slot_vllm.evaluation.record import CONDUCT, Comparison, Result
from slot_vllm.evaluation.run_settings import differences
from slot_vllm.evaluation.stored_run import StoredPart, StoredRun
from slot_vllm.removed import REMOVED


@dataclass(frozen=True)
class ArmAcrossRuns:
    """``comparison`` is the second run's score minus the first's, over ``problems`` problems."""

    first: StoredPart
    second: StoredPart
    metric: str
    problems: int
    comparison: Comparison
    words: str


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
    ours, theirs = (run.results.config.as_written() for run in (first, second))
    return TwoRuns(
        first=first.label,
        second=second.label,
        tasks=[_task(task, first, second) for task in tasks],
        settings=[found for found in differences(ours, theirs) if found[0] != "name"],
    )


def _task(task: str, first: StoredRun, second: StoredRun) -> TaskAcrossRuns:
    ours = {part.arm: part for part in first.of_task(task)}
    theirs = {part.arm: part for part in second.of_task(task)}
    if not ours or not theirs:
        only = first.label if ours else second.label
        return TaskAcrossRuns(task, [], [f"Only {only} has this task: nothing is compared."])
    pairs = {name: (part, theirs[name]) for name, part in ours.items() if name in theirs}
    if not pairs:
        return TaskAcrossRuns(task, [], ["No arm has the same name in both runs."])
    remarks = [*_unknown_scorer(task, first, second), *_other_settings(pairs)]
    refused = {name: remark for name, pair in pairs.items() if (remark := _apart(*pair))}
    remarks += [f"{name}: {remark}" for name, remark in refused.items()]
    pairs = {name: pair for name, pair in pairs.items() if name not in refused}
    named = dict.fromkeys(m for pair in pairs.values() for part in pair for m in part.metrics)
    between = f"{second.label} against {first.label}"
    arms = []
    for metric in [*named, *CONDUCT] if pairs else []:
        if other := _other_scorer(task, metric, first, second):
            remarks.append(f"{metric}: {other}")
            continue
        here: dict[str, dict[str, float]] = {}
        there: dict[str, float] = {}
        for name, pair in pairs.items():
            if remark := _incomparable(metric, *pair):
                remarks.append(f"{name}: {metric} {remark}")
                continue
            # An arm's own name before each problem's: every arm has a reference of its own, and
            # all of them are corrected together.
            before, after = (part.scores_in(metric) for part in pair)
            shared = _shared(*pair) & before.keys() & after.keys()
            here[name] = {f"{name} {problem}": after[problem] for problem in shared}
            there |= {f"{name} {problem}": before[problem] for problem in shared}
        for name, found in compare(here, there).items():
            words = f"{task}, {name}, {between}, {metric}: {found.words}"
            arms.append(ArmAcrossRuns(*pairs[name], metric, len(here[name]), found, words))
    return TaskAcrossRuns(task, arms, remarks)


def _other_settings(pairs: Mapping[str, tuple[StoredPart, StoredPart]]) -> list[str]:
    """What else than its name differs between an arm of the one run and of the other."""
    remarks = []
    for name, (first, second) in pairs.items():
        ours, theirs = (_settings_of(part.entry) for part in (first, second))
        differ = [f"{k} {v} and {theirs[k]}" for k, v in ours.items() if theirs.get(k, v) != v]
        if differ:
            remarks.append(f"{name} is another arm in each run: {', '.join(differ)}.")
    return remarks


def _settings_of(entry: Result | None) -> dict[str, Any]:
    """An arm's, those that were removed since among them."""
    if entry is None or entry.arm is None or not (entry.arm.steps or entry.arm.control):
        return {}
    unused = {name: removal.default for name, removal in REMOVED.items()}
    return {**dict(entry.arm), **unused, **entry.removed}


def _unknown_scorer(task: str, first: StoredRun, second: StoredRun) -> list[str]:
    """Earlier releases did not record what scored a task."""
    silent = [run.label for run in (first, second) if task not in run.results.tasks]
    if len(silent) != 1:
        return []
    return [
        f"{silent[0]} does not record what scored its answers: a difference may be the scorer's; "
        "`slot-vllm rescore` scores both runs alike."
    ]


def _other_scorer(task: str, metric: str, first: StoredRun, second: StoredRun) -> str | None:
    known = [run.results.tasks.get(task) for run in (first, second)]
    ours, theirs = (found.metrics.get(metric) if found else None for found in known)
    if ours and theirs and ours != theirs:
        return (
            f"{first.label} was scored by {ours}, {second.label} by {theirs}; `slot-vllm rescore` "
            "scores both alike."
        )
    return None


def _apart(first: StoredPart, second: StoredPart) -> str | None:
    """Why nothing of the two is compared."""
    if first.entry and second.entry and first.entry.metric != second.entry.metric:
        return f"scored by {first.entry.metric} in one run, by {second.entry.metric} in the other."
    if not _shared(first, second):
        return "no problem with the same id and prompt was answered in both runs."
    return None


def _incomparable(metric: str, first: StoredPart, second: StoredPart) -> str | None:
    if not first.scores_in(metric) or not second.scores_in(metric):
        return "is in only one of the runs."
    if not (_is_mean(metric, first) and _is_mean(metric, second)):
        return "is not the mean of its problems' scores."
    return None


def _is_mean(metric: str, part: StoredPart) -> bool:
    """Whether the part's value is the mean of its problems' scores, as far as can be told: after
    a sweep with a split the value is of some of the problems."""
    entry = part.entry
    if entry is None or metric in CONDUCT:
        return True
    if metric != entry.metric and metric not in entry.metrics:
        return True
    value = entry.value if metric == entry.metric else entry.metrics[metric].value
    if value is None or entry.samples != len(part.problems):
        return value is not None
    scores = part.scores_in(metric)
    return math.isclose(sum(scores.values()) / len(scores), value, abs_tol=1e-9)


def _shared(first: StoredPart, second: StoredPart) -> set[str]:
    ours, theirs = first.problems, second.problems
    return {
        i for i in ours.keys() & theirs.keys() if ours[i].prompt_sha256 == theirs[i].prompt_sha256
    }
