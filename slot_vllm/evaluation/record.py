"""What a run leaves, declared once: arms, samples, results, sweeps.

``results.json`` is a RunRecord, a line of ``samples.jsonl`` a Sample. What writes them, reads them
or goes on from them takes their fields from here.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slot_vllm.evaluation.control import Control
from slot_vllm.evaluation.run_settings import RunSettings, changed, text_hash
from slot_vllm.params import SlotParams
from slot_vllm.removed import split

# Of results.json. 1, which did not say so: arms without their settings, no words per metric.
SCHEMA = 2

BASELINE = "baseline"
# How answers end and read, scored beside a task's own metrics: less is better.
CUT_OFF, LOOPS = "truncated", "loops"
CONDUCT = (CUT_OFF, LOOPS)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Bounds = tuple[float, float]


def schema_of(values: Any) -> Any:
    """What results.json says that its schema is; the first did not say so."""
    return values.get("schema", 1) if isinstance(values, Mapping) else 1


class Arm(SlotParams):
    """One setting of SLOT, a control, or both. The arm with neither is ``baseline``.

    An arm that says a control and nothing of SLOT has no SLOT: its steps are 0.
    """

    name: Name
    control: Control | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_control_alone(cls, values: Any) -> Any:
        alone = isinstance(values, Mapping) and values.keys() == {"name", "control"}
        return {**values, "steps": 0} if alone and values["control"] is not None else values

    def temperature(self, of_run: float) -> float:
        """Of its answers."""
        own = self.control.temperature if self.control else None
        return of_run if own is None else own

    def without(self, *kinds: str) -> "Arm":
        """The arm without these parts of its control."""
        if self.control is None:
            return self
        return changed(self, control=changed(self.control, **dict.fromkeys(kinds)))

    def request_args(self) -> dict[str, Any]:
        """The ``slot_*`` keys of this arm's requests: all of them, so no default interferes."""
        if not self.steps:
            return {"slot_steps": 0}
        settings = self.model_dump(mode="json", exclude={"name", "control"})
        return {f"slot_{key}": value for key, value in settings.items()}


class Recorded(BaseModel):
    """Part of a record: it does not change, its numbers are finite, unknown fields are left out."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Sample(Recorded):
    """One answer of one arm to one problem.

    id: the problem's id within its task; sample: which of the problem's answers this is.
    prompt, gold: None in the packed form, which holds no text of a benchmark. prompt_sha256: of the
        prompt as the model read it; item_sha256: of the problem and its gold answers.
    score: the problem's score in the task's first metric; scores: in all of them, and in
        ``truncated`` and ``loops``. Where a task draws several answers per problem, they share it.
    first_loss, last_loss: the prompt's mean cross entropy, nats per token, before SLOT's first
        step and after its last; null without SLOT.
    finish_reason: ``stop``, or ``length`` for an answer that was cut off.
    seconds: of wall time, from the start of the run's answers to the end of this one.
    """

    arm: str
    task: str
    id: str
    sample: int
    prompt: str | None = None
    prompt_sha256: str
    item_sha256: str | None = None
    completion: str
    gold: list[str] | None = None
    score: float | None
    scores: dict[str, float | None]
    steps: int
    lr: float
    first_loss: float | None
    last_loss: float | None
    seed: int
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    @model_validator(mode="before")
    @classmethod
    def _hash_the_prompt(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("prompt_sha256") is not None:
            return values
        prompt = values.get("prompt")
        return {**values, "prompt_sha256": text_hash(prompt)} if isinstance(prompt, str) else values

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Which answer of the run this is."""
        return self.arm, self.task, self.id, self.sample

    @property
    def cut_off(self) -> bool:
        return self.finish_reason == "length"


class Estimate(Recorded):
    """A value over problems, with its interval at 95 % where it has one."""

    value: float | None
    interval: Bounds | None = None


class Comparison(Recorded):
    """An arm's score minus the baseline's, over the problems that both have a score for.

    difference_interval: at 95 %. p_value: two-sided, of no difference; p_value_holm: corrected for
    the number of arms that are compared (Holm 1979). method: how interval and p came about.
    words: what the data allow to say.
    """

    difference: float
    difference_interval: Bounds | None
    p_value: float
    p_value_holm: float
    method: str
    words: str


class Compared(Estimate):
    """An estimate, and a comparison's numbers, None where there is none."""

    difference: float | None = None
    difference_interval: Bounds | None = None
    p_value: float | None = None
    p_value_holm: float | None = None


class Metric(Compared):
    """One metric of a task. stderr: lighteval's, None where it computes none."""

    stderr: float | None = None
    lower_is_better: bool = False
    method: str | None = None
    words: str | None = None


class Group(Compared):
    """A part of the answers, such as those that were cut off. samples: how many."""

    samples: int


Breakdown = dict[str, Group]


class Result(Metric):
    """One arm on one task. ``metric`` is the task's first, whose numbers stand here; ``metrics``
    holds all of them, and ``truncated`` and ``loops``.

    arm: its name and all of its settings; None where an earlier release does not say. removed: its
    settings that this release has no more, where they were used.
    samples: problems; unscored: those among them whose answers a scorer failed on, which are in no
    mean. first_loss, last_loss: means over the answers, nats per prompt token.
    truncated: the share of answers that a limit on their length cut off. pass_at_k: by k, where
    several answers per problem are right or wrong.
    breakdown: the score by why answers ended, and by the groups of problems that the data has.
    words: of every metric.
    """

    name: str
    task: str
    metric: str
    samples: int
    unscored: int = 0
    generated_tokens: int = 0
    steps: int
    lr: float = 0.0
    arm: Arm | None = None
    removed: dict[str, Any] = Field(default={}, exclude_if=lambda removed: not removed)
    first_loss: float | None = None
    last_loss: float | None = None
    metrics: dict[str, Metric] = {}
    pass_at_k: dict[str, Estimate] = {}
    truncated: float | None = None
    breakdown: dict[str, Breakdown] = {}

    @model_validator(mode="before")
    @classmethod
    def _set_removed_apart(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("arm"), Mapping):
            return values
        arm, removed = split(values["arm"])
        return {**values, "arm": arm, "removed": {**removed, **values.get("removed", {})}}

    def temperature(self, of_run: float) -> float:
        """Of the arm's answers."""
        return self.arm.temperature(of_run) if self.arm else of_run

    @property
    def said(self) -> dict[str, str]:
        """What the data allow to say, by metric."""
        said = {name: metric.words for name, metric in self.metrics.items() if metric.words}
        return said or ({self.metric: self.words} if self.words else {})


class Cell(Compared):
    """One setting of a sweep; the baseline's has steps 0 and no lr. unscored: as in a Result."""

    arm: str
    steps: int
    lr: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    truncated: float | None = None
    unscored: int = 0

    @classmethod
    def of(cls, row: Result) -> "Cell":
        """Of an arm's result on the problems that the sweep is measured on."""
        shared = {key: getattr(row, key) for key in cls.model_fields.keys() & Result.model_fields}
        return cls(**{**shared, "arm": row.name, "lr": row.lr if row.steps else None})


class Sweep(Recorded):
    """Steps times learning rates on one task.

    selected_on: what problems the best setting was picked by. split: the part of the problems that
    was set aside for that; selected_by: their ids.
    """

    task: str
    metric: str
    problems: int
    split: float | None = None
    steps: list[int] = []
    lr: list[float] = []
    best: str | None = None
    selected_by: list[str] = []
    selected_on: str = "test data"
    words: str = ""
    cells: list[Cell]

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


class Scored(Recorded):
    """What ``slot-vllm score`` gives. samples: problems; unscored: those among them that a scorer
    failed on. metrics: the task's first one first."""

    task: str
    samples: int
    unscored: int = 0
    metrics: Mapping[str, Estimate]


class TaskDefinition(Recorded):
    """What a task is made of, by which two runs know whether they scored alike.

    prompt: the function that makes prompts. metrics: by name, the scorer and a hash of its source.
    lighteval: its version. answers: per problem. token_limit: the task's own, of new tokens.
    """

    prompt: str
    metrics: dict[str, str]
    lighteval: str
    answers: int
    token_limit: int | None = None


class RunRecord(Recorded):
    """``results.json``.

    tasks: by name, what each of them is made of. seconds: of wall time, that all answers took,
    interruptions left out; less where a run was begun by an earlier release, 0 where it says
    nothing.
    """

    schema_version: int = Field(default=1, alias="schema", ge=1, le=SCHEMA)
    arms: list[Result]
    sweeps: list[Sweep] = []
    config: RunSettings = RunSettings()
    tasks: dict[str, TaskDefinition] = {}
    seconds: float = 0.0
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}

    @property
    def unscored(self) -> tuple[int, int]:
        """How many problems could not be scored, of how many: of all arms, and of what a sweep's
        best was selected on."""
        counts = [(row.unscored, row.samples) for row in self.arms]
        for sweep in self.sweeps:
            if not sweep.on_test_data:
                counts += [(cell.unscored, sweep.problems) for cell in sweep.cells]
        return sum(failed for failed, _ in counts), sum(asked for _, asked in counts)

    @property
    def max_model_len(self) -> int | None:
        """Tokens, where the engine was told."""
        return self.config.engine.get("max_model_len")

    @model_validator(mode="before")
    @classmethod
    def _of_the_last_release(cls, values: Any) -> Any:
        """Gives the arms of schema 1 the settings that the configuration says they had."""
        if not isinstance(values, Mapping) or "schema" in values:
            return values
        config, arms = values.get("config"), values.get("arms")
        if not isinstance(config, Mapping) or not isinstance(arms, list):
            return values
        named = {
            arm["name"]: arm
            for arm in config.get("arms") or []
            if isinstance(arm, Mapping) and "name" in arm
        }
        sweep = config.get("sweep")
        of_cells = sweep.get("settings", {}) if isinstance(sweep, Mapping) else None
        return {**values, "arms": [_with_settings(arm, named, of_cells) for arm in arms]}

    def as_json(self) -> dict[str, Any]:
        values = self.model_dump(by_alias=True, exclude={"config"})
        return {**values, "config": self.config.as_written()}


def _with_settings(entry: Any, named: Mapping[str, Any], of_cells: Mapping[str, Any] | None) -> Any:
    if not isinstance(entry, Mapping) or "arm" in entry:
        return entry
    name = entry.get("name")
    if isinstance(name, str) and name in named:
        return {**entry, "arm": named[name]}
    if of_cells is None or not {"steps", "lr"} <= entry.keys():
        return entry
    return {**entry, "arm": {**of_cells, **{k: entry[k] for k in ("name", "steps", "lr")}}}
