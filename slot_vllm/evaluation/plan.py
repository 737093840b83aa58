"""Which arm answers which problems, and what is answered."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lighteval.tasks.requests import Doc

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.generation import Request
from slot_vllm.evaluation.record import BASELINE, SCHEMA, Arm, Result, RunRecord, Sample
from slot_vllm.evaluation.results import compared, machine, result, versions
from slot_vllm.evaluation.run_settings import RunSettings
from slot_vllm.evaluation.scoring import Scores, graded, score_stored
from slot_vllm.evaluation.sweep import Grid
from slot_vllm.evaluation.task_definition import definition
from slot_vllm.evaluation.tasks import EvaluationTask


@dataclass
class Part:
    """One arm on problems of one task. samples, scores: of those that are answered, by id.

    requests: by id, of those that were pending when the engine started.
    """

    arm: Arm
    task: EvaluationTask
    docs: list[Doc]
    samples: dict[str, list[Sample]]
    scores: dict[str, Scores] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)

    @property
    def pending(self) -> list[Doc]:
        return [doc for doc in self.docs if doc.id not in self.samples]

    @property
    def answered(self) -> list[Sample]:
        """In the order of the problems, whatever order they finished in."""
        return [sample for doc in self.docs for sample in self.samples[doc.id]]

    def score_stored(self) -> None:
        """Scores the answers that there are, by today's scorers."""
        for doc in self.docs:
            if answers := self.samples.get(doc.id):
                self.scores[doc.id] = score_stored(self.task, doc, answers)
                self.samples[doc.id] = graded(answers, self.scores[doc.id])

    def result(self) -> Result:
        scores = [self.scores[doc.id] for doc in self.docs]
        return result(self.arm, self.task, scores, self.answered)


class Plan:
    """Without ``select`` every arm answers all problems. With it the cells of the sweep and the
    baseline answer a part of them, ``selecting``; on the others, ``reported``, a cell answers only
    if it is the best.

    stored: answers of an interrupted run.
    """

    def __init__(
        self, config: RunConfig, tasks: Sequence[EvaluationTask], stored: Sequence[Sample]
    ) -> None:
        self._config, self._arms, self._tasks = config, config.all_arms, tasks
        self._stored: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for sample in stored:
            self._stored[sample.arm, sample.task, sample.id].append(sample)
        self._grids = [Grid(config, task) for task in tasks] if config.sweep else []
        reported = {grid.task.name: grid.reported for grid in self._grids}
        self._all_reported = [
            self._part(arm, task, reported.get(task.name, task.docs))
            for arm in self._arms
            for task in tasks
        ]
        self.selecting = [
            self._part(arm, grid.task, grid.docs)
            for arm in self._arms
            for grid in self._grids
            if config.select and arm.name in {*grid.cells, BASELINE}
        ]

    @property
    def parts(self) -> list[Part]:
        """All that may have to be answered."""
        return [*self.selecting, *self._all_reported]

    @property
    def reported(self) -> list[Part]:
        """While a selection is not complete, none of its cells."""
        out = self._not_best if self.selecting else set()
        return [part for part in self._all_reported if (part.arm.name, part.task.name) not in out]

    @property
    def wanted(self) -> list[Part]:
        """What has to be answered, as far as is known."""
        return [*self.selecting, *self.reported]

    @property
    def inspected(self) -> list[Part]:
        """Of the arms with SLOT, those outside a sweep and the best of its cells."""
        with_slot = [part for part in self.reported if part.arm.steps]
        out = self._not_best
        return [part for part in with_slot if (part.arm.name, part.task.name) not in out]

    @property
    def seconds(self) -> float:
        """Of wall time that the answers so far took, interruptions left out."""
        answers = [a for part in self.parts for of_one in part.samples.values() for a in of_one]
        return max((answer.seconds for answer in answers), default=0.0)

    def record(self) -> RunRecord:
        """Of parts that are all answered."""
        rows = [row for task in self._tasks for row in _compared(self.reported, task)]
        names = [arm.name for arm in self._arms]
        rows.sort(key=lambda row: names.index(row.name))
        sweeps = [grid.summary(_compared(self._measured, grid.task)) for grid in self._grids]
        return RunRecord(
            schema=SCHEMA,
            arms=rows,
            sweeps=sweeps,
            config=RunSettings.model_validate(self._config.model_dump(mode="json")),
            tasks={task.name: definition(task) for task in self._tasks},
            seconds=self.seconds,
            versions=versions(),
            machine=machine(),
        )

    def _part(self, arm: Arm, task: EvaluationTask, docs: list[Doc]) -> Part:
        stored = {doc.id: self._stored.get((arm.name, task.name, doc.id), []) for doc in docs}
        whole = {doc.id: stored[doc.id] for doc in docs if len(stored[doc.id]) == doc.num_samples}
        return Part(arm, task, docs, whole)

    @property
    def _measured(self) -> list[Part]:
        """What the cells of a sweep are compared on."""
        return self.selecting or self._all_reported

    @property
    def _not_best(self) -> set[tuple[str, str]]:
        """The sweep's cells with SLOT, and their tasks, that are not known to be the best."""
        found = set()
        for grid in self._grids:
            parts = [part for part in self._measured if part.task is grid.task]
            answered = not any(part.pending for part in parts)
            best = grid.best([part.result() for part in parts]) if answered else None
            found |= {(cell, grid.task.name) for cell in {*grid.cells} - {BASELINE, best}}
        return found


def _compared(parts: Sequence[Part], task: EvaluationTask) -> list[Result]:
    of_task = [part for part in parts if part.task is task]
    samples = {part.arm.name: part.answered for part in of_task}
    return compared([part.result() for part in of_task], samples, task.groups)
