"""A grid of settings on one task: which problems it is measured on, and which cell is best."""

import random
from collections.abc import Sequence

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.record import BASELINE, Cell, Result, Sweep
from slot_vllm.evaluation.tasks import EvaluationTask


class Grid:
    """The cells of a run's sweep on one task.

    cells: the arms' names, the baseline's among them if the sweep has steps 0. docs: the problems
    that the cells are measured on; with ``select`` a part of the task's, drawn by the run's seed,
    and otherwise all. reported: those that the results are about, which the baseline, the best cell
    and the arms outside the grid answer: the others with ``select``, and otherwise all too.
    """

    def __init__(self, config: RunConfig, task: EvaluationTask) -> None:
        assert config.sweep is not None
        self.task = task
        self.cells = [cell.name for cell in config.sweep.arms()]
        self.docs = self.reported = task.docs
        self._sweep = config.sweep
        self._split = config.select.split if config.select else None
        if self._split is not None:
            drawn = _draw(len(task.docs), self._split, f"{config.generation.seed}|{task.name}")
            self.docs = [doc for i, doc in enumerate(task.docs) if i in drawn]
            self.reported = [doc for i, doc in enumerate(task.docs) if i not in drawn]

    def best(self, results: Sequence[Result]) -> str:
        """The cell with SLOT that has the best value; among equals the one of least steps, then of
        least lr."""
        cells = [row for row in results if row.name in self.cells and row.steps]
        return min(cells, key=lambda row: (self._order(row), row.steps, row.lr)).name

    def summary(self, results: Sequence[Result]) -> Sweep:
        """What the sweep found, from the results on ``docs``."""
        best = self.best(results)
        by_name = {row.name: row for row in results}
        return Sweep(
            task=self.task.name,
            metric=results[0].metric,
            problems=len(self.docs),
            split=self._split,
            steps=self._sweep.steps,
            lr=self._sweep.lr,
            best=best,
            selected_by=[doc.id for doc in self.docs] if self._split else [],
            selected_on="a part of the problems" if self._split else "test data",
            words=self._words(by_name[best], by_name.get(BASELINE)),
            cells=[Cell.of(row) for row in results if row.name in self.cells],
        )

    def _words(self, best: Result, baseline: Result | None) -> str:
        settings = len([cell for cell in self.cells if cell != BASELINE])
        of = f"{self.task.name}: {best.name} is the best of {settings} settings of SLOT on"
        if self._split is None:
            said = (
                f"{of} the very problems that it is reported on; selected on test data, its value "
                "is too high on average (`select` avoids that)."
            )
        else:
            others = len(self.reported)
            said = f"{of} {len(self.docs)} problems; the results are those on the other {others}."
        if baseline is not None and baseline.value == best.value:
            return f"{said} The baseline is as good there."
        if baseline is not None and self._order(baseline) < self._order(best):
            return f"{said} The baseline is better there."
        return said

    def _order(self, row: Result) -> tuple[bool, float]:
        """Less is better; a row without a value comes last."""
        return row.value is None, (row.value or 0.0) * (1 if row.lower_is_better else -1)


def _draw(count: int, share: float, seed: str) -> set[int]:
    part = round(share * count)
    if not 0 < part < count:
        raise ConfigError(
            f"select.split={share}: it leaves {part} of {count} problems for the selection and "
            f"{count - part} for the report; allowed: a share that leaves some for both"
        )
    return set(random.Random(seed).sample(range(count), part))
