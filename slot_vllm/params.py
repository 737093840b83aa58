"""What an engine and a request may set: parsing, precedence, validation.

Precedence: request > its ``slot_preset`` > ``additional_config["slot"]`` > its ``preset`` >
environment > defaults (the paper's). A preset says every setting, so nothing shines through it.

A request has SLOT if it names any setting, or if the engine does: then all its requests have it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from slot_vllm.chat_turns import ROLES
from slot_vllm.presets import PRESETS
from slot_vllm.removed import REMOVED, refuse
from slot_vllm.validation_errors import Allowed, allowed_values, describe, one_of, shown

REQUEST_PREFIX = "slot_"
# More than any prompt has. What vLLM's processes send each other carries no integer above 64 bits.
_MOST_TOKENS = 2**31 - 1

PAPER_STEPS = 5

# The published scripts' names are read after our own.
ENVIRONMENT = {
    "SLOT_STEPS": "steps",
    "SLOT_LR": "lr",
    "CHOT_STEPS": "steps",
    "CHOT_LR": "lr",
}


class SlotError(ValueError):
    """A SLOT setting that is unknown, of the wrong type or out of range."""


def _number(value: Any) -> Any:
    # JSON `true` is not a number, and neither is a string that looks like one.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is required")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is required")
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("an integer is required")
    return value


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a list of two numbers is required")
    return tuple(value)


def _or_none(check: Callable[[Any], Any]) -> BeforeValidator:
    # HTTP requests cannot say null.
    return BeforeValidator(lambda value: None if value is None or value == "none" else check(value))


def _preset(value: Any) -> Any:
    if value is not None and value not in list(PRESETS):
        raise ValueError("unknown preset")
    return value


def _loss_tokens(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value or not all(role in ROLES for role in value):
            raise ValueError("unknown list of roles")
        return tuple(dict.fromkeys(value))
    if value in ("all", "text", *ROLES):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
        raise ValueError("unknown choice of tokens")
    return value


Integer = Annotated[int, BeforeValidator(_integer)]
Number = Annotated[float, BeforeValidator(_number)]
Steps = Annotated[Integer, Field(ge=0)]
LearningRate = Annotated[Number, Field(ge=0, le=100)]
# In float32 a beta nearer to 1 would be 1, and a smaller eps 0.
Beta = Annotated[Number, Field(ge=0, le=0.9999999)]
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(_pair)]
Epsilon = Annotated[Number, Field(ge=1e-30, le=1)]
WeightDecay = Annotated[Number, Field(ge=0, le=1)]
Rounding = Literal["exact", "model"]
Window = Annotated[
    Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None,
    _or_none(_integer),
    Allowed(f"'none' or an integer from 1 to {_MOST_TOKENS}"),
]
HalfLife = Annotated[
    Annotated[float, Field(gt=0)] | None,
    _or_none(_number),
    Allowed("'none' or a number above 0"),
]
Preset = Annotated[str | None, PlainValidator(_preset), Allowed(one_of(map(repr, PRESETS)))]
Reduction = Literal["mean", "mean_over_rows"]
LossTokens = Annotated[
    int | str | tuple[str, ...],
    PlainValidator(_loss_tokens),
    Allowed(
        f"'all', 'text', {', '.join(map(repr, ROLES))}, a list of these roles, or an integer from "
        f"1 to {_MOST_TOKENS}"
    ),
]


class SlotParams(BaseModel):
    """The settings of one request. Defaults are the paper's.

    preset: a name of ``PRESETS``, whose settings stand where none is given. It is None once they
        are filled in.
    rounding: ``exact`` applies W delta in float32; ``model`` reproduces the published h + delta in
        the model's dtype, which loses small deltas in bf16.
    window: W delta is added for the first so many generated tokens. None: for all.
    half_life: for the t-th generated token, counted from 0, W delta is multiplied by
        2^(-t / half_life). None: it stays as it is.
    reduction: of the gradient over the rows; ``mean_over_rows`` divides the mean by their number.
    loss_tokens: which tokens of the prompt are learned from: all, those of the turns of one role or
        of several, all but special tokens (``text``), or the last K.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)

    preset: Preset = Field(default=None, exclude=True)
    steps: Steps = PAPER_STEPS
    lr: LearningRate = 0.1
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-5
    weight_decay: WeightDecay = 1e-8
    rounding: Rounding = "exact"
    window: Window = None
    half_life: HalfLife = None
    reduction: Reduction = "mean"
    loss_tokens: LossTokens = "all"

    @property
    def words(self) -> str | tuple[str, ...] | None:
        """``loss_tokens`` where only a tokenizer can tell which those are."""
        wanted = self.loss_tokens
        return None if isinstance(wanted, int) or wanted == "all" else wanted

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        refuse(values)
        if values.get("preset") not in list(PRESETS):
            return values
        own = {key: value for key, value in values.items() if key != "preset"}
        return {**PRESETS[values["preset"]], **own}


REQUEST_KEYS = tuple(REQUEST_PREFIX + name for name in SlotParams.model_fields)


class SlotConfig(SlotParams):
    """The settings of one engine: the defaults of its requests, and its limits.

    steps: of requests that name no setting; 0 unless the engine names one. A request that names
        one, but not ``slot_steps``, has these steps, or the paper's where they are 0.
    max_steps: the most steps that a request may ask for.
    max_prompt_tokens: the longest prompt that is learned from as a whole, tokens. None: no limit.
    long_prompts: what happens with longer ones: ``refuse``: no SLOT; ``last``: delta is learned
        from the last ``max_prompt_tokens`` tokens, and their hidden states after the whole prompt.
    max_concurrent: how many prompts may complete, and so be optimized, in one engine step; the
        others wait with their last token. None: no limit.
    workspace_mb: memory of the optimizer, MiB, allocated when the model is loaded. None: 512 on a
        CPU; on CUDA 2 % of the memory free by then, at least 256 and at most 4096.
    hidden_cache: whether hidden states are kept in vLLM's KV cache, so that prompts may be read
        from the prefix cache; ``auto``: where that works.
    delta_cache_mb: deltas for later requests with an equal prompt, MiB; 0: every request learns
        its own.
    pending_mb: hidden states of prompts that are not complete yet, MiB on the device; what exceeds
        it waits in host memory. With ``hidden_cache`` none wait: how many are copied out of the KV
        cache at once, for the prompts that a step completes.
    report_loss: compute the prompt loss after the last step too (one more pass per prompt) and
        keep the losses of finished requests readable with the deltas.
    keep_deltas: how many finished requests' deltas (and losses) stay readable.
    receipts: of how many finished requests it can be read what was done to them, for a quarter of
        an hour; needs the loss that ``report_loss`` computes, and little more. 0: of none, nor of
        those that run.
    check_ranks: under tensor parallelism, compare hashes of each delta over the ranks; a request
        whose ranks differ fails. Waits for the device: for debugging.
    """

    steps: Steps = 0
    max_steps: Annotated[Integer, Field(ge=0, le=1000)] = 100
    max_prompt_tokens: Annotated[Integer, Field(ge=2)] | None = None
    long_prompts: Literal["refuse", "last"] = "refuse"
    max_concurrent: Annotated[Integer, Field(ge=1)] | None = None
    workspace_mb: Annotated[Integer, Field(ge=1)] | None = None
    hidden_cache: Literal["auto", "on", "off"] = "auto"
    delta_cache_mb: Annotated[Integer, Field(ge=0)] = 64
    pending_mb: Annotated[Integer, Field(ge=0)] = 256
    report_loss: Annotated[bool, Field(strict=True)] = False
    keep_deltas: Annotated[Integer, Field(ge=0)] = 0
    receipts: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    check_ranks: Annotated[bool, Field(strict=True)] = False

    @classmethod
    def load(
        cls, settings: Mapping[str, Any] | None, environment: Mapping[str, str]
    ) -> "SlotConfig":
        """The engine's settings, ``additional_config["slot"]`` over the environment.

        Raises SlotError, naming the key, the value and what is allowed.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise SlotError(f'additional_config["slot"]={settings!r}: a mapping is required')
        values: dict[str, Any] = dict(_from_environment(environment))
        if settings and settings.get("preset") is not None:
            values.clear()
        values.update(settings or {})
        if any(name in SlotParams.model_fields for name in settings or {}):
            values.setdefault("steps", PAPER_STEPS)
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise SlotError(describe(error, cls, "slot.")) from None
        if config.steps > config.max_steps:
            raise SlotError(
                f"slot.steps={config.steps}: more than slot.max_steps; "
                f"allowed: {config._allowed_steps}"
            )
        if config.long_prompts == "last" and config.max_prompt_tokens is None:
            raise SlotError(
                "slot.long_prompts='last': slot.max_prompt_tokens says how many tokens that are; "
                "allowed without it: 'refuse'"
            )
        _check_together(config, "slot.")
        return config

    @classmethod
    def load_for_all(
        cls, settings: Mapping[str, Any], environment: Mapping[str, str]
    ) -> "SlotConfig":
        """``load`` for who asks for SLOT as such: the paper's steps where nothing says how many."""
        return cls.load(settings, {"CHOT_STEPS": str(PAPER_STEPS), **environment})

    def resolve(self, extra_args: Mapping[str, Any] | None) -> SlotParams:
        """One request's settings: its ``slot_*`` keys over the engine's defaults.

        Keys that do not start with ``slot_`` are not ours and are ignored. Raises SlotError.
        """
        own: dict[str, Any] = {}
        for key, value in named(extra_args).items():
            name = key.removeprefix(REQUEST_PREFIX)
            # Before pydantic, which knows no key that is not valid Unicode.
            if key not in REQUEST_KEYS and name not in REMOVED:
                allowed = ", ".join(REQUEST_KEYS)
                raise SlotError(f"{shown(key)}: unknown key; allowed: {allowed}")
            own[name] = value
        values = {}
        if own.get("preset") is None:
            values = {name: getattr(self, name) for name in SlotParams.model_fields}
            if own and not self.steps:
                values["steps"] = PAPER_STEPS
        values.update(own)
        try:
            params = SlotParams(**values)
        except ValidationError as error:
            limits = {"steps": self._allowed_steps}
            raise SlotError(describe(error, SlotParams, REQUEST_PREFIX, limits)) from None
        if params.steps > self.max_steps:
            raise SlotError(
                f"slot_steps={shown(params.steps)}: more than this engine's max_steps; "
                f"allowed: {self._allowed_steps}"
            )
        _check_together(params, REQUEST_PREFIX)
        return params

    @property
    def final_loss(self) -> bool:
        """Whether the loss after the last step is computed."""
        return self.report_loss or self.receipts > 0

    @property
    def _allowed_steps(self) -> str:
        return f"an integer from 0 to {self.max_steps}"

    def refuses(self, length: int) -> bool:
        """Whether a prompt of ``length`` tokens is too long for SLOT."""
        return self.long_prompts == "refuse" and length > (self.max_prompt_tokens or length)

    def skipped(self, length: int) -> int:
        """How many of the first tokens of a prompt of ``length`` are not learned from."""
        if self.long_prompts == "refuse" or self.max_prompt_tokens is None:
            return 0
        return max(0, length - self.max_prompt_tokens)


def named(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The SLOT settings that a request names itself: its keys that start with ``slot_``."""
    return {k: v for k, v in (extra_args or {}).items() if k.startswith(REQUEST_PREFIX)}


def _check_together(params: SlotParams, prefix: str) -> None:
    # Each step multiplies delta by 1 - lr * weight_decay.
    if params.lr * params.weight_decay > 1:
        raise SlotError(
            f"{prefix}weight_decay={params.weight_decay}: with {prefix}lr={params.lr} delta "
            "would grow without bound; allowed: lr * weight_decay of at most 1"
        )


def _from_environment(environment: Mapping[str, str]) -> dict[str, int | float]:
    values: dict[str, int | float] = {}
    for variable, name in ENVIRONMENT.items():
        text = environment.get(variable)
        if not text or name in values:
            continue
        try:
            values[name] = int(text) if name == "steps" else float(text)
            SlotParams.model_validate({name: values[name]})
        except ValidationError as error:
            message = describe(error, SlotParams).partition(": ")[2]
            raise SlotError(f"{variable}={text}: {message}") from None
        except ValueError:
            allowed = allowed_values(SlotParams.model_fields[name])
            raise SlotError(f"{variable}={text!r}: not a number; allowed: {allowed}") from None
    return values
