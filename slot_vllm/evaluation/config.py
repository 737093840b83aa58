"""The YAML file of a run: what it may say, how it is read, and its errors in one line.

Relative paths, in the file and in ``--set``, start at the current directory (see ``ready_files``).
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from slot_vllm.evaluation import ready_files, unicode_text
from slot_vllm.evaluation.control import Example
from slot_vllm.evaluation.errors import ConfigError, bad_input, of_file, one_line, valid
from slot_vllm.evaluation.models.catalog import path as model_path
from slot_vllm.evaluation.overrides import override
from slot_vllm.evaluation.record import BASELINE, Arm, Name
from slot_vllm.evaluation.run_settings import Generation, Positive, Strict
from slot_vllm.params import SlotConfig, SlotError, SlotParams
from slot_vllm.removed import REMOVED, of_stored_run, removed_from_run
from slot_vllm.setting import Integer, Number
from slot_vllm.validation_errors import describe

# How the file begins that a run writes of its configuration.
AS_IT_RAN = "# The configuration of this run, defaults included.\n"

# The evaluation sets these itself, from `model` and `slot`.
RESERVED_ENGINE_OPTIONS = ("model", "worker_extension_cls", "additional_config")


def _template(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("true, false or auto is required")
    return value


LocalPath = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
ChatTemplate = Annotated[bool | Literal["auto"], BeforeValidator(_template)]


def _of_all_cells(values: dict[str, Any]) -> dict[str, Any]:
    """All settings but those of the grid, a preset filled in."""
    for key in ("name", *_OF_ONE_CELL):
        if key in values:
            raise ValueError(f"{key} is not of all cells; the lists beside say steps and lr")
    allowed = [key for key in SlotParams.model_fields if key not in _OF_ONE_CELL]
    for key in values:
        if key not in allowed and key not in REMOVED:
            raise ValueError(f"{key}: unknown key; allowed: {', '.join(allowed)}")
    try:
        params = SlotParams(**values)
    except ValidationError as error:
        raise ValueError(describe(error, SlotParams)) from None
    return params.model_dump(mode="json", exclude=set(_OF_ONE_CELL))


_OF_ONE_CELL = ("steps", "lr")
CellSettings = Annotated[dict[str, Any], AfterValidator(_of_all_cells)]


class Task(Strict):
    """A task by its lighteval name (``gsm8k``, ``gsm8k|5`` for five examples in the prompt).

    data: a local file (json, jsonl, csv, parquet) or directory in place of the hub's dataset.
    max_samples: how many problems, chosen by lighteval's fixed shuffle.
    skip: so many of the shuffle's first are left out.
    answers: how many per problem, for metrics over several (avg@n, pass@k); default: the task's.
    """

    name: Annotated[str, Field(min_length=1)]
    data: LocalPath | None = None
    max_samples: Positive | None = None
    skip: Annotated[Integer, Field(ge=0)] = 0
    answers: Positive | None = None


class SweepSettings(Strict):
    """A grid of arms: all numbers of steps with all learning rates. Steps 0 are the baseline.

    settings: what all cells have besides, as an arm says it: ``{preset: paper-vllm}``.
    """

    steps: Annotated[list[Integer], Field(min_length=1)]
    lr: Annotated[list[Number], Field(min_length=1)]
    settings: CellSettings = Field(default={}, validate_default=True)

    def arms(self) -> list[Arm]:
        """One per cell. Raises ValidationError for a value that no arm may have."""
        steps = [count for count in self.steps if count]
        baseline = [Arm(name=BASELINE, steps=0)] if len(steps) < len(self.steps) else []
        return baseline + [
            Arm(name=f"steps{count}-lr{lr:g}", steps=count, lr=lr, **self.settings)
            for count in steps
            for lr in self.lr
        ]


class Select(Strict):
    """Picks the best arm of a sweep on a part of each task's problems, and reports on the rest.

    split: the part's share of the problems.
    """

    split: Annotated[Number, Field(gt=0, lt=1)]


class SlotLimits(Strict):
    """The engine's own SLOT settings; the arms say steps and learning rates."""

    max_steps: Integer = SlotConfig.model_fields["max_steps"].default
    workspace_mb: Integer | None = SlotConfig.model_fields["workspace_mb"].default
    pending_mb: Integer = SlotConfig.model_fields["pending_mb"].default


class Ray(Strict):
    """Replicas of the engine as Ray actors, which share the problems.

    address: of a running cluster (``auto`` finds one); without it Ray starts on this machine.
    resources: of each replica: ``num_cpus``, ``num_gpus`` (default: as many as the engine's
        parallel sizes ask for, where there are GPUs) and the cluster's own.
    """

    replicas: Positive
    address: str | None = None
    resources: dict[str, Annotated[Number, Field(ge=0)]] = Field(default={})


class RunConfig(Strict):
    """One run: every arm answers every task on the same engine.

    model: a local path, a hub name, or ``get:NAME`` for a model of ``slot-vllm get-model``.
    backend: what answers: vLLM, or transformers' ``generate`` with SLOT around it.
    engine: options of ``vllm.LLM``; ``transformers`` has some of them.
    chat_template: ``auto`` uses the tokenizer's, if it has one.
    system_prompt_file: a UTF-8 file in place of ``system_prompt``, taken byte for byte: a line
        break at its end is part of the prompt.
    system_prompt_sha256: of that file; filled in when the run is read. A run that states it is
        refused if the file is another.
    examples: worked examples, turns before the question in all arms.
    published_model: the model's name in the published table; default: the path's last part.
    ray: spreads the problems over replicas of the engine; without it there is one engine.
    custom_tasks: a Python file with a TASKS_TABLE of task definitions besides lighteval's own.
    inspect: at the end, reads the problems again and writes which tokens W delta raises and lowers.
    sweep: arms of a grid, besides those under ``arms``.
    """

    name: Name
    model: LocalPath
    backend: Literal["vllm", "transformers"] = "vllm"
    engine: dict[str, Any] = Field(default={})
    slot: SlotLimits = SlotLimits()
    generation: Generation = Generation()
    ray: Ray | None = None
    chat_template: ChatTemplate = "auto"
    system_prompt: str | None = None
    system_prompt_file: LocalPath | None = None
    system_prompt_sha256: str | None = None
    examples: list[Example] = Field(default=[])
    published_model: str | None = None
    custom_tasks: LocalPath | None = None
    inspect: bool = True
    tasks: Annotated[list[Task], Field(min_length=1)]
    arms: list[Arm] = Field(default=[])
    sweep: SweepSettings | None = None
    select: Select | None = None

    @property
    def all_arms(self) -> list[Arm]:
        """Those under ``arms`` and those of the sweep; a baseline of both is one arm."""
        named = {arm.name for arm in self.arms}
        own = BASELINE in named
        cells = self.sweep.arms() if self.sweep else []
        return [*(c for c in cells if not (own and c.name == BASELINE)), *self.arms]

    @property
    def uses_slot(self) -> bool:
        return any(arm.steps for arm in self.all_arms)

    @property
    def temperatures(self) -> list[float]:
        """Of all arms; the run's own if it has none."""
        of_run = self.generation.temperature
        return [arm.temperature(of_run) for arm in self.all_arms] or [of_run]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-4`` for a string; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file describes, with ``key=value`` settings laid over it.

    Raises ConfigError, naming the file and the key.
    """
    values = _read(path)
    with of_file(path, SlotError), valid(RunConfig):
        for setting in settings:
            override(values, setting, _parse)
        _check_texts(values)
        if said := removed_from_run(values):
            raise ConfigError(said)
        config = _with_sha256(RunConfig(**values))
        _check(config)
    return config


def check_paths(config: RunConfig) -> None:
    """Raises ConfigError for a model, prompt, task or data path that does not exist."""
    for key in ("custom_tasks", "system_prompt_file"):
        file = getattr(config, key)
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{key}={file!r}: no such file (from {Path.cwd()})")
    system_prompt(config)
    path = model_path(config.model)
    # `org/name` may be a hub's name.
    is_path = path.startswith((".", "/")) or path.count("/") > 1
    if path == config.model and is_path and not Path(path).exists():
        raise ConfigError(
            f"model={config.model!r}: no such path (from {Path.cwd()}); allowed: a directory "
            "with a model, a hub's org/name, or get:NAME"
        )
    for index, task in enumerate(config.tasks):
        if task.data is not None and not ready_files.find(task.data).exists():
            raise ConfigError(
                f"tasks.{index}.data={task.data!r}: no such path (from {Path.cwd()}); allowed: a "
                "json, jsonl, csv or parquet file, or a directory of them"
            )


def system_prompt(config: RunConfig) -> str | None:
    """What a run's file says, or the file that it names. Raises ConfigError."""
    if config.system_prompt_file is None:
        return config.system_prompt
    said = f"system_prompt_file={config.system_prompt_file!r}: cannot be read"
    with bad_input(said, OSError, UnicodeDecodeError):
        return Path(config.system_prompt_file).read_bytes().decode("utf-8")


def _check_texts(values: Any, key: str = "") -> None:
    inner: dict[Any, Any] = {}
    if isinstance(values, dict | list):
        inner = values if isinstance(values, dict) else dict(enumerate(values))
    for name, value in inner.items():
        if unicode_text.fault(name) is None:  # else it is this one that is wrong
            _check_texts(value, f"{key}.{name}" if key else str(name))
    fault = unicode_text.fault(values)
    if fault is not None:
        raise ConfigError(f"{key}: {fault}; allowed: write the character itself")


def _with_sha256(config: RunConfig) -> RunConfig:
    file, stated = config.system_prompt_file, config.system_prompt_sha256
    if file is None and stated is not None:
        raise ConfigError("system_prompt_sha256: there is no `system_prompt_file`")
    if file is None or not Path(file).is_file():
        return config
    found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if stated not in (None, found):
        raise ConfigError(f"system_prompt_sha256={stated!r}: {file} has {found}")
    return config.model_copy(update={"system_prompt_sha256": found})


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = ready_files.find(path).read_text(encoding="utf-8")
        values = _parse(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "?"
        raise ConfigError(f"{path}:{place}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ConfigError(f"{path}: not YAML: {one_line(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: a mapping of keys to values is required")
    return of_stored_run(values) if text.startswith(AS_IT_RAN) else values


def _check(config: RunConfig) -> None:
    with valid(Arm, "sweep: "):
        arms = config.all_arms
    if not arms:
        raise ConfigError("arms: no arm; required: at least one, here or in `sweep`")
    for key, names in {
        "sweep and arms" if config.sweep else "arms": [arm.name for arm in arms],
        "tasks": [task.name for task in config.tasks],
    }.items():
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{key}: two of them are named {twice!r}; every name is used once")
    if config.system_prompt is not None and config.system_prompt_file is not None:
        raise ConfigError("system_prompt: there is a `system_prompt_file` too; allowed: one")
    if config.sweep and not any(config.sweep.steps):
        raise ConfigError("sweep.steps: none of them is above 0; required: at least one")
    if config.select and not config.sweep:
        raise ConfigError("select: there is no `sweep` to select from")
    for arm in arms:
        if arm.name == BASELINE and arm.control is not None:
            raise ConfigError(
                f"{_key(config, arm)}.control: {BASELINE!r} has none; allowed: in arms of other "
                "names"
            )
        if (arm.name == BASELINE) != (arm.steps == 0 and arm.control is None):
            raise ConfigError(
                f"{_key(config, arm)}: name={arm.name!r} with steps={arm.steps}; the arm with "
                f"steps 0 and no control, and only that one, is named {BASELINE!r}"
            )
        if arm.control and arm.control.temperature == config.generation.temperature:
            raise ConfigError(
                f"{_key(config, arm)}.control.temperature={arm.control.temperature}: it is the "
                "run's own; allowed: another one"
            )
    for option in RESERVED_ENGINE_OPTIONS:
        if option in config.engine:
            raise ConfigError(f"engine.{option}: set by the evaluation, from `model` and `slot`")
    engine = SlotConfig.load(config.slot.model_dump(), {})
    for arm in arms:
        with bad_input(_key(config, arm), SlotError):
            engine.resolve(arm.request_args())


def _key(config: RunConfig, arm: Arm) -> str:
    return f"arms.{config.arms.index(arm)}" if arm in config.arms else "sweep"
