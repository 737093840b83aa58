"""A run's configuration as its record holds it, whichever release wrote it."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slot_vllm.removed import of_stored_run
from slot_vllm.setting import Integer, Number

_Model = TypeVar("_Model", bound=BaseModel)


def text_hash(*texts: str) -> str:
    """SHA-256, in hexadecimal, of texts and where each of them ends."""
    digest = hashlib.sha256()
    for text in texts:
        part = text.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def changed(model: _Model, **values: Any) -> _Model:
    """A copy with other values of these fields. Raises TypeError for a field that it lacks."""
    unknown = values.keys() - type(model).model_fields.keys()
    if unknown:
        raise TypeError(f"{type(model).__name__} has no field {min(unknown)}")
    return model.model_copy(update=values)


Positive = Annotated[Integer, Field(ge=1)]


class Strict(BaseModel):
    """What a user writes: of these types, and nothing that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Generation(Strict):
    """How answers are sampled. ``temperature: 0`` is greedy decoding.

    max_new_tokens: at most; without it the task's own limit. What the prompt leaves of the
        model's context is a limit too.
    seed: every problem's seed is derived from this one, its task and its id: all arms answer a
        problem with the same seed.
    stop: strings that end an answer, besides the task's own (lighteval drops those of the task
        when a chat template is in use).
    """

    temperature: Annotated[Number, Field(ge=0)] = 0.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Integer, Field(ge=0)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=2)] = 1.0
    max_new_tokens: Positive | None = None
    seed: Annotated[Integer, Field(ge=0)] = 0
    stop: list[Annotated[str, Field(min_length=1)]] = []


class _Whole(BaseModel):
    """Its fields are what a record is asked for; it holds all that the configuration said."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class RecordedGeneration(Generation):
    """The run's ``generation``."""

    model_config = ConfigDict(extra="allow", strict=False, allow_inf_nan=False)


class TaskOfRun(_Whole):
    """An item of the run's ``tasks``."""

    name: str
    data: str | None = None


class RunSettings(_Whole):
    """The run's configuration."""

    name: str | None = None
    model: str | None = None
    published_model: str | None = None
    backend: str = "vllm"
    engine: dict[str, Any] = {}
    generation: RecordedGeneration = RecordedGeneration()
    chat_template: bool | str = "auto"
    system_prompt: str | None = None
    system_prompt_file: str | None = None
    examples: list[Any] = []
    tasks: list[TaskOfRun] = []
    arms: list[dict[str, Any]] = []

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, values: Any) -> Any:
        return of_stored_run(values) if isinstance(values, Mapping) else values

    def as_written(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


def differences(one: Any, other: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Where two configurations differ, by dotted keys (``arms.slot.lr``), with both values. What
    one of them lacks is None there."""
    if one == other:
        return []
    ours, theirs = _items(one), _items(other)
    if ours is None or theirs is None or not (ours or theirs):
        return [(key, one, other)]
    start = f"{key}." if key else ""
    pairs = [(f"{start}{k}", ours.get(k), theirs.get(k)) for k in {**ours, **theirs}]
    return [found for k, a, b in pairs for found in differences(a, b, k)]


def _items(value: Any) -> Mapping[Any, Any] | None:
    """What has keys of its own: a mapping's, and a list's by ``name`` or index, as ``--set`` has
    them."""
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return {item.get("name", index): item for index, item in enumerate(value)}
    return {} if value is None else value if isinstance(value, Mapping) else None


def without_system_prompt(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the hash of its system prompt in the text's place."""
    text = config.get("system_prompt")
    return (
        {**config, "system_prompt": f"sha256:{text_hash(text)}"} if text is not None else {**config}
    )
