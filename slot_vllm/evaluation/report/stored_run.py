"""A finished run as its directory holds it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from slot_vllm.evaluation.config import BASELINE, ConfigError
from slot_vllm.evaluation.samples import Sample, SampleFile
from slot_vllm.evaluation.statistics import Interval


class Estimate(BaseModel):
    """A value over problems, with its interval where it has one."""

    value: float | None
    interval: Interval | None = None


class Compared(Estimate):
    """An estimate and its difference to the baseline's."""

    difference: float | None = None
    difference_interval: Interval | None = None
    p_value: float | None = None
    p_value_holm: float | None = None


class Group(Compared):
    """A part of the answers, such as those that were cut off."""

    samples: int


class Entry(Compared):
    """One arm on one task, as under ``arms`` in ``results.json``."""

    name: str
    task: str
    metric: str
    samples: int
    steps: int
    lr: float | None = None
    seconds: float = 0.0
    generated_tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    metrics: dict[str, Estimate] = {}
    pass_at_k: dict[str, Estimate] = {}
    breakdown: dict[str, dict[str, Group]] = {}
    method: str | None = None
    words: str | None = None


class Cell(Compared):
    """One setting of a sweep; the baseline's has steps 0."""

    arm: str
    steps: int
    lr: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    truncated: float | None = None


class Sweep(BaseModel):
    """Steps times learning rates on one task.

    selected_on: what problems the best setting was picked by. split: the part of the problems that
    was set aside for that; selected_by: their ids.
    """

    task: str
    metric: str
    problems: int
    cells: list[Cell]
    split: float | None = None
    selected_by: list[str] = []
    best: str | None = None
    selected_on: str = "test data"

    @property
    def baseline(self) -> Cell | None:
        return next((cell for cell in self.cells if not cell.steps), None)

    @property
    def scored(self) -> list[Cell]:
        """The settings of SLOT that have a value."""
        return [cell for cell in self.cells if cell.steps and cell.value is not None]

    @property
    def on_test_data(self) -> bool:
        return self.selected_on == "test data"


class Results(BaseModel):
    """``results.json``."""

    arms: list[Entry]
    sweeps: list[Sweep] = []
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}


class Shift(BaseModel):
    """A token and what delta adds to its logit."""

    id: int
    token: str
    shift: float


class PromptShifts(BaseModel):
    """What delta does to one prompt's logits."""

    id: str
    prompt: str
    raised: list[Shift] = []
    lowered: list[Shift] = []


class Inspection(BaseModel):
    """The same, on average over the prompts of a task; vocabulary_mean: over all tokens."""

    arm: str
    task: str
    problems: int
    vocabulary_mean: float | None = None
    raised: list[Shift] = []
    lowered: list[Shift] = []
    prompts: list[PromptShifts] = []


@dataclass(frozen=True)
class Part:
    """One arm's answers to one task. entry: None for an arm that only a sweep reports."""

    arm: str
    task: str
    steps: int
    lr: float
    entry: Entry | None
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
    def scores(self) -> dict[str, float]:
        """By problem."""
        scores = {problem: sample.score for problem, sample in self.problems.items()}
        return {problem: score for problem, score in scores.items() if score is not None}


@dataclass(frozen=True)
class StoredRun:
    """label: the run's name, with its directory where two runs have the same name."""

    path: Path
    label: str
    results: Results
    samples: list[Sample]
    inspections: list[Inspection]

    @cached_property
    def parts(self) -> list[Part]:
        """All arms on all tasks: those of ``arms``, then what only the samples hold. Answers that
        only served to select a setting are left out."""
        selecting = {(s.task, problem) for s in self.results.sweeps for problem in s.selected_by}
        answers: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            if (sample.task, sample.id) not in selecting:
                answers.setdefault((sample.task, sample.arm), []).append(sample)
        entries = {(entry.task, entry.name): entry for entry in self.results.arms}
        keys = [key for key in dict.fromkeys([*entries, *answers]) if key in answers]
        return [
            Part(arm, task, found[0].steps, found[0].lr, entries.get((task, arm)), found)
            for task, arm in keys
            for found in [answers[task, arm]]
        ]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(part.task for part in self.parts))

    def of_task(self, task: str) -> list[Part]:
        """The task's parts, the baseline first."""
        parts = [part for part in self.parts if part.task == task]
        return sorted(parts, key=lambda part: part.arm != BASELINE)

    def baseline(self, task: str) -> Part | None:
        return next((part for part in self.of_task(task) if part.arm == BASELINE), None)


def read_all(paths: Sequence[Path]) -> list[StoredRun]:
    """Raises ConfigError for a directory that holds no finished run, or is named twice."""
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{path}: named twice; a run is compared with another one")
    results = [_results(path) for path in paths]
    names = [
        str(found.config.get("name") or path.name)
        for path, found in zip(paths, results, strict=True)
    ]
    labels = [
        name if Counter(names)[name] == 1 else f"{name} ({path})"
        for name, path in zip(names, paths, strict=True)
    ]
    return [
        StoredRun(path, label, found, _samples(path), _inspections(path))
        for path, label, found in zip(paths, labels, results, strict=True)
    ]


_Model = TypeVar("_Model")


def _results(path: Path) -> Results:
    file = path / "results.json"
    if not file.exists():
        raise ConfigError(f"{file}: no such file; a run writes it when all arms have answered")
    return _load(file, TypeAdapter(Results))


def _samples(path: Path) -> list[Sample]:
    file = SampleFile(path / "samples.jsonl")
    try:
        samples = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}") from None
    if not samples:
        raise ConfigError(f"{file.path}: no samples; a run writes them as answers finish")
    return samples


def _inspections(path: Path) -> list[Inspection]:
    file = path / "inspection.json"
    return _load(file, TypeAdapter(list[Inspection])) if file.exists() else []


def _load(file: Path, kind: TypeAdapter[_Model]) -> _Model:
    try:
        return kind.validate_python(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{file}: {key + ': ' if key else ''}{problem['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
