"""What an engine and a request may set: parsing, precedence, validation.

Precedence: request > its ``slot_preset`` > ``additional_config["slot"]`` > its ``preset`` >
environment > defaults (the paper's). A preset says every setting, so nothing shines through it.

A request has SLOT if it names any setting, or if the engine does: then all its requests have it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from slot_vllm.chat_turns import ROLES
from slot_vllm.presets import PRESETS
from slot_vllm.removed import REMOVED, refuse
from slot_vllm.setting import Betas, Count, Integer, Number, Setting, integer, number, or_none
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


class SlotParams(BaseModel):
    """The settings of one request. Defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)

    preset: Annotated[
        str | None,
        PlainValidator(_preset),
        Allowed(one_of(map(repr, PRESETS))),
        Setting(
            "settings that go together ([below](#presets))", "that of its settings", ("paper-vllm",)
        ),
    ] = Field(default=None, exclude=True)  # None once its settings are filled in.
    steps: Annotated[
        Count,
        Setting(
            "steps of AdamW, at most the engine's `max_steps`; 0 is plain vLLM, bit for bit. The "
            "default is the engine's `steps` where they are not 0",
            "for n prompt tokens one n x V x d product, then a pass over n x V logits and two over "
            "W per step; where the logits do not fit the workspace, one such product per step",
            (2,),
        ),
    ] = PAPER_STEPS
    lr: Annotated[
        Number,
        Field(ge=0, le=100),
        Setting("learning rate; `lr * weight_decay` is at most 1", tried=(0.5,)),
    ] = 0.1
    betas: Annotated[Betas, Setting("AdamW's decay rates", tried=((0.5, 0.7),))] = (0.9, 0.999)
    eps: Annotated[
        Number, Field(ge=1e-30, le=1), Setting("added to AdamW's denominator", tried=(1e-3,))
    ] = 1e-5
    weight_decay: Annotated[
        Number, Field(ge=0, le=1), Setting("decoupled weight decay", tried=(0.1,))
    ] = 1e-8
    rounding: Annotated[
        Literal["exact", "model"],
        Setting(
            "`exact` adds W delta to the logits in float32. `model` adds delta to the hidden "
            "states in the model's dtype, as the published code does; in bf16 that loses most of "
            "a small delta",
            tried=("model",),
        ),
    ] = "exact"
    window: Annotated[
        Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None,
        or_none(integer),
        Allowed(f"'none' or an integer from 1 to {_MOST_TOKENS}"),
        Setting(
            "how many generated tokens, from the first on, W delta is added for; `none`: all "
            "([below](#a-window-and-a-half-life))",
            tried=(7,),
            shares=True,
        ),
    ] = None
    half_life: Annotated[
        Annotated[float, Field(gt=0)] | None,
        or_none(number),
        Allowed("'none' or a number above 0"),
        Setting(
            "for the t-th generated token, counted from 0, W delta is multiplied by "
            "2^(-t / half_life); `none`: by 1 ([below](#a-window-and-a-half-life))",
            tried=(1.5,),
            shares=True,
        ),
    ] = None
    reduction: Annotated[
        Literal["mean", "mean_over_rows"],
        Setting(
            "of the gradient over the rows; `mean_over_rows` divides the mean by their number",
            tried=("mean_over_rows",),
        ),
    ] = "mean"
    loss_tokens: Annotated[
        int | str | tuple[str, ...],
        PlainValidator(_loss_tokens),
        Allowed(
            f"'all', 'text', {', '.join(map(repr, ROLES))}, a list of these roles, or an integer "
            f"from 1 to {_MOST_TOKENS}"
        ),
        Setting(
            "which tokens of the prompt are learned from ([below](#which-tokens-count))",
            "less than all tokens do; with `text` and roles the front end reads and searches the "
            "prompt once more",
            (3, 7, "text", "user"),
        ),
    ] = "all"

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
# Requests that differ in these alone share a delta.
SHARING = frozenset(n for n, field in SlotParams.model_fields.items() if Setting.of(field).shares)


class SlotConfig(SlotParams):
    """The settings of one engine: the defaults of its requests, and its limits."""

    # Of requests that name no setting; the paper's where the engine names another setting.
    steps: Count = 0
    max_steps: Annotated[
        Integer, Field(ge=0, le=1000), Setting("the most steps that a request may ask for")
    ] = 100
    max_prompt_tokens: Annotated[
        Annotated[Integer, Field(ge=2)] | None,
        Setting(
            "the longest prompt that is learned from as a whole; null: no limit",
            "the optimizer's time grows with it",
        ),
    ] = None
    long_prompts: Annotated[
        Literal["refuse", "last"],
        Setting(
            "what happens with longer ones. `refuse`: an error (HTTP 400) for a request that names "
            "a `slot_*` key, and `bypassed.long_prompt` for one that has SLOT from the defaults. "
            "`last`: delta is learned from the last `max_prompt_tokens` tokens, with their hidden "
            "states after the whole prompt",
            "`last`: as a prompt of `max_prompt_tokens` tokens",
        ),
    ] = "refuse"
    max_concurrent: Annotated[
        Annotated[Integer, Field(ge=1)] | None,
        Setting(
            "how many prompts may complete, and so be optimized, in an engine step; null: no limit",
            "the others wait with their last token ([bursts](#bursts-of-prompts))",
        ),
    ] = None
    workspace_mb: Annotated[
        Annotated[Integer, Field(ge=1)] | None,
        Setting(
            "memory of the optimizer. null: 512 on a CPU; on CUDA 2 % of the memory that is free "
            "once the model is loaded, at least 256 and at most 4096. The log says at start-up "
            "how much it is and why",
            "so many MiB, allocated before vLLM measures what is left for the KV cache",
        ),
    ] = None
    hidden_cache: Annotated[
        Literal["auto", "on", "off"],
        Setting(
            "whether hidden states are kept in vLLM's KV cache, so that SLOT requests read the "
            "prefix cache ([prefix caching](prefix_cache.md)). `on` is an error where that is "
            "impossible; `auto` is then `off`, with a line in the log",
            "a layer of the KV cache",
        ),
    ] = "auto"
    delta_cache_mb: Annotated[
        Count,
        Setting(
            "deltas for later requests with an equal prompt; 0: every request learns its own",
            "so many MiB",
        ),
    ] = 64
    pending_mb: Annotated[
        Count,
        Setting(
            "hidden states of prompts that are not complete yet; what exceeds it waits in host "
            "memory. With `hidden_cache` none wait: how much is copied out of the KV cache at once",
            "so many MiB, on a GPU",
        ),
    ] = 256
    report_loss: Annotated[
        bool,
        Field(strict=True),
        Setting(
            "compute the prompt loss after the last step too, and keep the losses of finished "
            "requests readable with the deltas",
            "one more pass over the prompt's logits",
        ),
    ] = False
    keep_deltas: Annotated[
        Count,
        Setting(
            "how many finished requests' deltas and losses stay readable; 0: none at any time",
            "a vector of the hidden size each",
        ),
    ] = 0
    receipts: Annotated[
        Integer,
        Field(ge=0, le=10_000),
        Setting(
            "of how many finished requests it can be read what SLOT did to them, for 15 minutes "
            "([receipts](observability.md#receipts)); 0: of none, nor of those that run",
            "the loss after the last step, as `report_loss`; two rows of logits per prompt; one "
            "more pass over W for all prompts of a group",
        ),
    ] = 0
    check_ranks: Annotated[
        bool,
        Field(strict=True),
        Setting(
            "under tensor parallelism, compare hashes of each delta over the ranks; a request "
            "whose ranks differ fails and counts in `ranks_differ`. For debugging",
            "each step waits for the device",
        ),
    ] = False

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


def named(extra_args: Any) -> dict[str, Any]:
    """The SLOT settings that a request names itself: its keys that start with ``slot_``. What is
    no mapping has none."""
    if not isinstance(extra_args, Mapping):
        return {}
    return {k: v for k, v in extra_args.items() if k.startswith(REQUEST_PREFIX)}


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
