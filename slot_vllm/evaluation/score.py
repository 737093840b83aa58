"""``slot-vllm score``: answers from elsewhere, scored as a run scores its own."""

import contextlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lighteval.models.model_output import ModelResponse
from rich.console import Console
from rich.table import Table

from slot_vllm.evaluation import data_files, ready_files, scoring, tasks, unicode_text
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.data_files import Item
from slot_vllm.evaluation.errors import ConfigError, RunFailed, valid
from slot_vllm.evaluation.record import Scored
from slot_vllm.evaluation.table import new_table
from slot_vllm.evaluation.tasks import EvaluationTask

# Whoever drew several answers to a problem did so at a temperature.
_WARM = {"temperature": 1.0}


def command(
    task: str,
    data: Path,
    answers: Path,
    answers_per_problem: int | None,
    custom_tasks: str | None,
    json: bool,
) -> None:
    """Runs it. Raises ConfigError, and RunFailed at the end if a scorer failed on some answers."""
    with contextlib.redirect_stdout(sys.stderr):  # what lighteval and its libraries print
        loaded = load(task, data, answers_per_problem, custom_tasks)
        scored = score(loaded, read(loaded, answers))
    if json:
        print(scored.model_dump_json())
    else:
        Console().print(_table(scored))
    if scored.unscored:
        raise RunFailed(scoring.unscored(scored.unscored, scored.samples))


def load(
    name: str, data: Path, answers: int | None = None, custom_tasks: str | None = None
) -> EvaluationTask:
    """A task and all problems of its data, checked as a run checks them. Raises ConfigError.

    answers: how many per problem; default: the task's.
    """
    if not ready_files.find(data).exists():
        raise ConfigError(f"--data {data}: no such path (from {Path.cwd()})")
    if custom_tasks is not None:
        _check_file("--custom-tasks", Path(custom_tasks))
    task = {"name": name, "data": str(data), "answers": answers}
    values = {"name": "score", "model": "none", "tasks": [task], "custom_tasks": custom_tasks}
    try:
        with valid(RunConfig):
            run = RunConfig.model_validate({**values, "generation": _WARM})
        each = tasks.definitions(name, "name", custom_tasks)
        if len(each) > 1:
            names = ", ".join(definition.name for definition in each)
            raise ConfigError(f"it is {len(each)} tasks; allowed: one of {names}")
        [found] = tasks.load(run)
        scoring.check(found)
    except ConfigError as error:
        raise ConfigError(f"--task {name}: {str(error).removeprefix('tasks.0.')}") from None
    return found


def read(task: EvaluationTask, path: Path) -> dict[str, list[str]]:
    """The completions by problem, in the order of the file. Raises ConfigError for a line that
    is no answer, a problem without one or with too many, and an id that is of no problem."""
    _check_file("--answers", path)
    lines = [_answer(item) for item in data_files.read(path, of="answers")]
    problems = _problems(task, [(place, name) for place, name, _ in lines])
    completions: dict[str, list[str]] = defaultdict(list)
    counts = {doc.id: doc.num_samples for doc in task.docs}
    for (place, name, completion), problem in zip(lines, problems, strict=True):
        if len(completions[problem]) == counts[problem]:
            raise ConfigError(f"{place}: id={name!r} again; required: {_times(counts[problem])}")
        completions[problem].append(completion)
    for problem in sorted(counts, key=lambda position: [*map(int, position.split("."))]):
        if len(completions[problem]) < counts[problem]:
            own = task.own_ids.get(problem)
            called = f"{own!r} (position {problem})" if own is not None else repr(problem)
            raise ConfigError(
                f"{path}: {len(completions[problem]) or 'no'} answer to the problem with id "
                f"{called}; required: {_times(counts[problem])}"
            )
    return completions


def score(task: EvaluationTask, completions: Mapping[str, Sequence[str]]) -> Scored:
    """Intervals are at 95 %, over problems; None where a metric is no mean of theirs."""
    scores = [
        scoring.score(task, doc, ModelResponse(input="", text=list(completions[doc.id])))
        for doc in task.docs
    ]
    return Scored(
        task=task.name,
        samples=len(scores),
        unscored=sum(not of_problem for of_problem in scores),
        metrics=scoring.aggregate(task, scores),
    )


def _check_file(option: str, path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{option} {path}: it is a directory; required: one file")
    if not path.is_file():
        raise ConfigError(f"{option} {path}: no such file (from {Path.cwd()})")


def _answer(item: Item) -> tuple[str, str, str]:
    """Place, id and completion."""
    place, row = item
    for key in ("id", "completion"):
        if key not in row:
            raise ConfigError(f"{place}: no {key!r}; required: id, completion")
    name, completion = row["id"], row["completion"]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ConfigError(f"{place}: id={name!r}: a text or an integer is required")
    if not isinstance(completion, str):
        raise ConfigError(f"{place}: completion={completion!r}: a text is required")
    unicode_text.check(f"{place}: id", name)
    unicode_text.check(f"{place}: completion", completion)
    return place, str(name), completion


def _problems(task: EvaluationTask, named: Sequence[tuple[str, str]]) -> list[str]:
    """The problem of each id: all of them are the problems' own ids, or all are positions. Where
    they are both, they are own ids."""
    positions = {doc.id for doc in task.docs}
    own = defaultdict(list)
    for problem, name in task.own_ids.items():
        own[name].append(problem)
    if all(len(own.get(name, ())) == 1 for _, name in named):
        return [own[name][0] for _, name in named]
    if all(name in positions for _, name in named):
        return [name for _, name in named]
    by_own = sum(name in own for _, name in named) >= sum(name in positions for _, name in named)
    for place, name in named:
        if by_own and len(own.get(name, ())) > 1:
            raise ConfigError(
                f"{place}: id={name!r} is of {len(own[name])} problems; name them by position"
            )
        if name not in (own if by_own else positions):
            known = "their own ids" if by_own else f"positions from 0 to {len(positions) - 1}"
            raise ConfigError(f"{place}: id={name!r} is of no problem; the others are {known}")
    return [own[name][0] for _, name in named]


def _times(count: int) -> str:
    return "one answer to each problem" if count == 1 else f"{count} answers to each problem"


def _table(scored: Scored) -> Table:
    title = f"{scored.task}, {scored.samples} problems"
    grid = new_table(("metric", "value", "95 % interval"), {"metric"}, title)
    for name, found in scored.metrics.items():
        bounds = f"{found.interval[0]:.4f} to {found.interval[1]:.4f}" if found.interval else "-"
        grid.add_row(name, "-" if found.value is None else f"{found.value:.4f}", bounds)
    return grid
