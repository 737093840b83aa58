"""The published runs: a table that comes with the package, read."""

import math
from dataclasses import dataclass
from pathlib import Path, PurePath

from slot_vllm.evaluation import data_files
from slot_vllm.evaluation.data_files import Row
from slot_vllm.evaluation.errors import ConfigError, bad_input

TABLE = Path(__file__).with_name("published_results.csv")
COLUMNS = ("task", "model", "steps", "lr", "accuracy")

# How many problems a task has.
PROBLEMS = {"aime24": 30, "math_500": 500, "gpqa:diamond": 198}

# How the answers were drawn: one to each problem.
TEMPERATURE, TOP_P, NEW_TOKENS = 0.6, 0.95, 32768

# Positions, of the models that have fewer than these answers may take.
CONTEXT = dict.fromkeys(("Qwen2.5-Math-1.5B", "Qwen2.5-Math-7B"), 4096)

# Of an interval at 95 %.
CRITICAL = 1.96


@dataclass(frozen=True)
class PublishedRun:
    """One answer to each of the task's problems. ``steps`` 0: without SLOT; ``lr`` then says
    nothing. ``accuracy``: the share that is right, rounded as published."""

    task: str
    model: str
    steps: int
    lr: float
    accuracy: float

    @property
    def problems(self) -> int:
        return PROBLEMS[self.task]

    @property
    def context(self) -> int:
        """Positions of the model, as far as they limit an answer."""
        return CONTEXT.get(self.model, NEW_TOKENS)

    @property
    def stderr(self) -> float:
        """As lighteval prints it, in the published logs too: sqrt(p (1 - p) / (n - 1)).

        That is 0 where no problem or every problem is solved, as if nothing could vary: there it is
        half of Wilson's interval, divided by 1.96.
        """
        p, n = self.accuracy, self.problems
        if 0 < p < 1:
            return math.sqrt(p * (1 - p) / (n - 1))
        return CRITICAL / (2 * (n + CRITICAL**2))

    def is_of(self, model: str) -> bool:
        """Whether ``model``, a hub name or a directory, is called as this run's is.

        Case does not matter, and neither does ``Meta-``, which the hub's Llama 3.1 has lost.
        """
        return _plain(PurePath(model).name) == _plain(self.model)


def read(path: Path | None = None) -> list[PublishedRun]:
    """The table's rows in their order; of TABLE without a path. It is CSV unless the file's name
    says another kind. Raises ConfigError."""
    path = path or TABLE
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; --published FILE names the table of published runs, and "
            "without it the package's own is read"
        )
    return [_run(place, row) for place, row in data_files.read(path, "rows", ".csv")]


def _run(where: str, row: Row) -> PublishedRun:
    values = [row.get(column) for column in COLUMNS]
    if any(value in (None, "") for value in values):
        raise ConfigError(f"{where}: a row needs {', '.join(COLUMNS)}")
    task, model, steps, lr, accuracy = map(str, values)
    if task not in PROBLEMS:
        raise ConfigError(f"{where}: task={task!r}; allowed: {', '.join(PROBLEMS)}")
    with bad_input(where, ValueError):
        run = PublishedRun(task, model, int(steps), float(lr), float(accuracy))
    if not 0 <= run.accuracy <= 1:
        raise ConfigError(f"{where}: accuracy={accuracy}; allowed: from 0 to 1")
    return run


def _plain(name: str) -> str:
    return name.lower().removeprefix("meta-")
