"""A finished run as its directory holds it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slot_vllm.evaluation import ready_files
from slot_vllm.evaluation.conduct import conduct
from slot_vllm.evaluation.directory import RESULTS, read_inspections, read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.inspection_record import Inspection
from slot_vllm.evaluation.record import BASELINE, CONDUCT, Result, RunRecord, Sample
from slot_vllm.evaluation.samples import SAMPLES, SampleFile


@dataclass(frozen=True)
class StoredPart:
    """One arm's answers to one task. entry: None for an arm that only a sweep reports."""

    arm: str
    task: str
    steps: int
    lr: float
    entry: Result | None
    samples: list[Sample]

    @cached_property
    def answers(self) -> dict[str, list[Sample]]:
        """By problem, in the order in which they were drawn."""
        answers: dict[str, list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda sample: sample.sample):
            answers.setdefault(sample.id, []).append(sample)
        return answers

    @property
    def problems(self) -> dict[str, Sample]:
        """Each problem's first answer, which carries the problem's score and losses."""
        return {problem: answers[0] for problem, answers in self.answers.items()}

    @property
    def metrics(self) -> list[str]:
        """The task's own; its first metric first."""
        named = dict.fromkeys(metric for sample in self.samples for metric in sample.scores)
        return [metric for metric in named if metric not in CONDUCT]

    def scores_in(self, metric: str | None = None) -> dict[str, float]:
        """By problem, in one of the metrics or of CONDUCT; default: the task's first metric."""
        if metric in CONDUCT:
            return {i: conduct(answers)[metric] for i, answers in self.answers.items()}
        scores = {
            i: sample.score if metric is None else sample.scores.get(metric)
            for i, sample in self.problems.items()
        }
        return {i: score for i, score in scores.items() if score is not None}


@dataclass(frozen=True)
class StoredRun:
    """label: the run's name, with its directory where two runs have the same name."""

    path: Path
    label: str
    results: RunRecord
    samples: list[Sample]
    inspections: list[Inspection]

    @cached_property
    def parts(self) -> list[StoredPart]:
        """All arms on all tasks: those of ``arms``, then what only the samples hold. Answers that
        only served to select a setting are left out."""
        selecting = {(s.task, problem) for s in self.results.sweeps for problem in s.selected_by}
        answers: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            if (sample.task, sample.id) not in selecting:
                answers.setdefault((sample.task, sample.arm), []).append(sample)
        entries = {(entry.task, entry.name): entry for entry in self.results.arms}
        known = {key: answers[key] for key in [*entries, *answers] if key in answers}
        return [
            StoredPart(arm, task, found[0].steps, found[0].lr, entries.get((task, arm)), found)
            for (task, arm), found in known.items()
        ]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(part.task for part in self.parts))

    def of_task(self, task: str) -> list[StoredPart]:
        """The task's parts, the baseline first."""
        parts = [part for part in self.parts if part.task == task]
        return sorted(parts, key=lambda part: part.arm != BASELINE)

    def baseline(self, task: str) -> StoredPart | None:
        return next((part for part in self.of_task(task) if part.arm == BASELINE), None)


def read_all(paths: Sequence[Path]) -> list[StoredRun]:
    """Raises ConfigError for a directory that holds no finished run, or is named twice."""
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{path}: named twice; a run is compared with another one")
    results = [read_results(path / RESULTS) for path in paths]
    names = [found.config.name or path.name for path, found in zip(paths, results, strict=True)]
    labels = [
        name if Counter(names)[name] == 1 else f"{name} ({path})"
        for name, path in zip(names, paths, strict=True)
    ]
    return [
        StoredRun(path, label, found, _samples(path, found), read_inspections(path))
        for path, label, found in zip(paths, labels, results, strict=True)
    ]


def _samples(path: Path, results: RunRecord) -> list[Sample]:
    file = SampleFile(path / SAMPLES)
    samples = file.read()
    if not samples:
        raise ConfigError(f"{file.path}: no samples; a run writes them as answers finish")
    data = [ready_files.find(task.data) for task in results.config.tasks if task.data]
    local = len(data) == len(results.config.tasks) and all(path.exists() for path in data)
    if file.found == file.packed and local:
        # Here, not above: importing lighteval takes seconds, and only packed answers need it.
        from slot_vllm.evaluation.stored_tasks import with_texts

        return with_texts(results, samples, path)
    return samples
