"""What an engine and a request may set: parsing, precedence, validation.

Precedence: request > ``additional_config["slot"]`` > environment > defaults (the paper's).
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

REQUEST_PREFIX = "slot_"
_SHOWN_CHARACTERS = 100

# The published scripts' names are read after our own.
ENVIRONMENT = {
    "SLOT_STEPS": "steps",
    "SLOT_LR": "lr",
    "CHOT_STEPS": "steps",
    "CHOT_LR": "lr",
}


class SlotError(ValueError):
    """A SLOT setting that is unknown, of the wrong type or out of range."""


def describe(error: ValidationError, prefix: str = "", value_of: Any = None) -> str:
    """One line for the first problem of a pydantic error: key, value, what is allowed."""
    problem = error.errors(include_url=False)[0]
    key = prefix + ".".join(_shown(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {value_of}" if value_of else f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}={_shown(problem['input'], repr)}: {message[:1].lower()}{message[1:]}"


def _shown(value: Any, text_of: Callable[[Any], str] = str) -> str:
    """Of what others sent, as much as fits a message of one line."""
    try:
        text = text_of(value)
    except ValueError:
        # Python writes out no integer of thousands of digits.
        text = f"<{type(value).__name__} too large to show>"
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "..."
    # Lone surrogates, which no answer can carry, and line ends.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


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
        raise ValueError("a list of two numbers in [0, 1) is required")
    return tuple(value)


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


class SlotParams(BaseModel):
    """The settings of one request. Defaults are the paper's.

    ``rounding``: ``exact`` applies W delta in float32; ``model`` reproduces the published
    h + delta in the model's dtype, which loses small deltas in bf16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)

    steps: Steps = 5
    lr: LearningRate = 0.1
    betas: Betas = (0.9, 0.999)
    eps: Epsilon = 1e-5
    weight_decay: WeightDecay = 1e-8
    rounding: Rounding = "exact"


REQUEST_KEYS = tuple(REQUEST_PREFIX + name for name in SlotParams.model_fields)


class SlotConfig(SlotParams):
    """The settings of one engine: the defaults of its requests, and its limits.

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
    check_ranks: under tensor parallelism, compare hashes of each delta over the ranks; a request
        whose ranks differ fails. Waits for the device: for debugging.
    """

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
        values = dict(_from_environment(environment))
        values.update(settings or {})
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise SlotError(describe(error, "slot.", ", ".join(cls.model_fields))) from None
        if config.steps > config.max_steps:
            raise SlotError(
                f"slot.steps={config.steps}: more than slot.max_steps; "
                f"allowed: an integer from 0 to {config.max_steps}"
            )
        if config.long_prompts == "last" and config.max_prompt_tokens is None:
            raise SlotError(
                "slot.long_prompts='last': slot.max_prompt_tokens says how many tokens that are; "
                "allowed without it: 'refuse'"
            )
        _check_decay(config, "slot.")
        return config

    def resolve(self, extra_args: Mapping[str, Any] | None) -> SlotParams:
        """One request's settings: its ``slot_*`` keys over the engine's defaults.

        Keys that do not start with ``slot_`` are not ours and are ignored. Raises SlotError.
        """
        values = {name: getattr(self, name) for name in SlotParams.model_fields}
        for key, value in named(extra_args).items():
            # Before pydantic, which knows no key that is not valid Unicode.
            if key not in REQUEST_KEYS:
                allowed = ", ".join(REQUEST_KEYS)
                raise SlotError(f"{_shown(key)}: unknown key; allowed: {allowed}")
            values[key.removeprefix(REQUEST_PREFIX)] = value
        try:
            params = SlotParams(**values)
        except ValidationError as error:
            raise SlotError(describe(error, REQUEST_PREFIX)) from None
        if params.steps > self.max_steps:
            raise SlotError(
                f"slot_steps={_shown(params.steps)}: more than this engine's max_steps; "
                f"allowed: an integer from 0 to {self.max_steps}"
            )
        _check_decay(params, REQUEST_PREFIX)
        return params

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


def _check_decay(params: SlotParams, prefix: str) -> None:
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
            message = describe(error).partition(": ")[2]
            raise SlotError(f"{variable}={text}: {message}") from None
        except ValueError:
            kind = "an integer" if name == "steps" else "a number"
            raise SlotError(f"{variable}={text!r}: {kind} is required") from None
    return values
