"""SLOT around ``generate``: a delta per row of the batch, by hooks that leave with the context."""

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slot_vllm.chat_turns import UndeterminedError
from slot_vllm.hf.linear_head import TransformersHead, find_head
from slot_vllm.loss_tokens import LossTokens, flags
from slot_vllm.optim.fading import WHOLE, factors, limits
from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.workspace import Workspace, choose_size
from slot_vllm.params import PAPER_STEPS, SlotConfig, SlotError, SlotParams

_ENGINE_ONLY = ("pending_mb", "keep_deltas", "receipts")
# Arguments of generate that make it call the model in another way than prompt, token, token, ...
_REFUSED = (
    "assistant_early_exit",
    "assistant_model",
    "custom_generate",
    "dola_layers",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "use_mtp",
)
_NOT_TEXT = ("input_features", "pixel_values", "pixel_values_videos")


def slot(model: Any, tokenizer: Any = None, **settings: Any) -> "Slot":
    """``with slot(model, steps=5, lr=0.1): model.generate(...)``.

    model: a causal language model of transformers in evaluation mode.
    tokenizer: its tokenizer, which ``loss_tokens`` "text" and of roles need.
    settings: those of a request (``SlotParams``), and ``max_steps``, ``workspace_mb`` and
    ``report_loss`` of ``SlotConfig``; what is not named comes from the environment, then from the
    defaults. Raises SlotError for a setting or a model that cannot be.
    """
    for name in _ENGINE_ONLY:
        if name in settings:
            raise SlotError(f"slot.{name}: only of a vLLM engine")
    # SLOT itself is asked for: the paper's steps, if nothing says others.
    config = SlotConfig.load(settings, {"CHOT_STEPS": str(PAPER_STEPS), **os.environ})
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise SlotError(
            f"SLOT needs a PreTrainedModel with generate(); this is a {type(model).__name__}"
        )
    if model.config.is_encoder_decoder:
        raise SlotError(f"SLOT needs a decoder; {type(model).__name__} is an encoder-decoder")
    if tokenizer is None and config.words is not None:
        raise SlotError(
            f"slot.loss_tokens={config.loss_tokens!r}: needs the tokenizer: slot(model, tokenizer)"
        )
    return Slot(model, config, tokenizer)


@dataclass
class _Call:
    """One generate call.

    passes: forward passes that have begun; the first sees the prompts. prompts: (tokens (B, n),
    mask (B, n) bool) until their deltas are learned. shift: (B, V) float32, W delta. rounded:
    (B, d), delta in the model's dtype. Both are None where nothing is to be added.
    """

    passes: int = 0
    prompts: tuple[Tensor, Tensor] | None = None
    shift: Tensor | None = None
    rounded: Tensor | None = None


class Slot:
    """Within it, every ``generate`` call of the model learns one delta per row of its batch, from
    that row's prompt without padding, and uses it for all tokens of the row. Other calls of the
    model are left as they are.

    deltas: (B, d) float32, of the last generate call; None before. losses: per row of that call,
    as ``Learned.losses``.
    """

    def __init__(self, model: Any, config: SlotConfig, tokenizer: Any = None) -> None:
        self.deltas: Tensor | None = None
        self.losses: list[Tensor] = []
        self._loss_tokens = LossTokens(tokenizer)
        self._model = model
        self._config = config
        self._params = SlotParams(**{n: getattr(config, n) for n in SlotParams.model_fields})
        self._exit = ExitStack()
        self._call: _Call | None = None

    def __enter__(self) -> "Slot":
        """Raises SlotError if the model is in training mode, is within SLOT already, or has no
        linear head, or if ``workspace_mb`` is too small."""
        _refuse_training(self._model)
        if isinstance(getattr(vars(self._model).get("generate"), "slot", None), Slot):
            raise SlotError("SLOT is on for this model already; contexts do not nest")
        self._found: TransformersHead = find_head(self._model)
        head = self._found.head
        size = choose_size(self._config.workspace_mb, head.weight.device)
        needed = smallest_workspace(head)
        if size.bytes < needed:
            raise SlotError(
                f"slot.workspace_mb={size.mb}: too small for a vocabulary of "
                f"{head.vocabulary}; allowed: an integer from {-(-needed >> 20)}"
            )
        self._workspace = Workspace(size.bytes, head.weight.device)
        with ExitStack() as entered:
            for hook in (
                self._model.register_forward_pre_hook(self._before_model, with_kwargs=True),
                self._found.decoder.register_forward_hook(self._after_decoder),
                self._found.module.register_forward_pre_hook(self._before_head),
                self._found.module.register_forward_hook(self._after_head),
            ):
                entered.callback(hook.remove)
            self._wrap_generate(entered)
            self._exit = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()
        del self._found, self._workspace

    def shifts(self) -> Tensor | None:
        """W delta (B, V) float32 of the last generate call, within the context; None before."""
        return None if self.deltas is None else self._found.head.exact_shift(self.deltas)

    def _wrap_generate(self, entered: ExitStack) -> None:
        own: Callable[..., Any] = self._model.generate
        before = vars(self._model).get("generate")

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            _refuse_training(self._model)
            _refuse_modes(self._model, inspect.signature(own).bind(*args, **kwargs).arguments)
            self.deltas, self.losses, self._call = None, [], _Call()
            try:
                return own(*args, **kwargs)
            finally:
                self._call = None

        def unwrap() -> None:
            del self._model.generate
            if before is not None:
                self._model.generate = before

        generate.slot = self  # type: ignore[attr-defined]
        self._model.generate = generate
        entered.callback(unwrap)

    def _before_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call is None:
            return
        if not self._call.passes:
            self._call.prompts = _prompts(args, kwargs)
        self._call.passes += 1

    def _after_decoder(self, _: nn.Module, args: Any, output: Any) -> None:
        call = self._call
        if call is None or call.prompts is None:
            return
        tokens, mask = call.prompts
        call.prompts = None
        self._learn(output[0], tokens, mask)
        if not self._params.steps:
            return
        assert self.deltas is not None
        if self._params.rounding == "model":
            call.rounded = self.deltas.to(self._found.head.weight.dtype)
        else:
            call.shift = self.shifts()

    @torch.no_grad()
    def _learn(self, hidden: Tensor, tokens: Tensor, mask: Tensor) -> None:
        """hidden: (B, n, d). tokens, mask: (B, n)."""
        device = self._found.head.weight.device
        hidden, tokens, mask = (t.to(device) for t in (hidden, tokens, mask))
        prompts = [
            Prompt(h[keep], t[keep], self._params, self._counts(t[keep]))
            for h, t, keep in zip(hidden, tokens, mask, strict=True)
        ]
        learned = optimize(
            self._found.head, prompts, self._workspace, final_loss=self._config.report_loss
        )
        self.deltas = torch.stack([result.delta for result in learned])
        self.losses = [result.losses for result in learned]
        lost = [i for i, result in enumerate(learned) if not result.finite]
        if lost:
            warnings.warn(
                f"SLOT: the deltas of rows {lost} are not finite and are not used; try a smaller "
                f"lr than {self._params.lr}",
                stacklevel=2,
            )

    def _counts(self, tokens: Tensor) -> list[bool] | None:
        wanted = self._params.words
        if wanted is None or not self._params.steps:
            return None
        try:
            return flags(self._loss_tokens.spans(tokens.tolist(), wanted), len(tokens))
        except UndeterminedError as error:
            raise SlotError(f"slot.loss_tokens={wanted!r}: {error}") from None

    def _left(self, call: _Call, values: Tensor | None) -> Tensor | None:
        """What the token that is to be chosen gets of ``values``, if anything."""
        own = limits(self._params)
        if values is None or own == WHOLE:
            return values
        t = torch.tensor(call.passes - 1)
        factor = float(factors(t, *torch.tensor(own, dtype=torch.float64)))
        if factor == 1.0:
            return values
        return (values.float() * factor).to(values.dtype) if factor else None

    def _before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = self._call
        if call is None or (rounded := self._left(call, call.rounded)) is None:
            return None
        return (args[0] + _per_row(rounded, args[0]), *args[1:])

    def _after_head(self, _: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        call = self._call
        if call is None or (shift := self._left(call, call.shift)) is None:
            return None
        # f follows in float32 then, which is the dtype that generate takes logits in.
        return output.float() + _per_row(shift, output)


def _per_row(values: Tensor, of: Tensor) -> Tensor:
    """values: (B, m), for ``of``: (B, k, m)."""
    if len(of) != len(values):
        raise SlotError(f"SLOT learned {len(values)} deltas; the batch now has {len(of)} rows")
    return values.unsqueeze(1).to(of.device)


def _refuse_training(model: Any) -> None:
    if model.training:
        raise SlotError("SLOT needs evaluation mode: call model.eval() first")


def _refuse_modes(model: Any, arguments: dict[str, Any]) -> None:
    """``arguments``: of generate, by name; what is not named comes from the generation configs."""
    named = {**arguments, **arguments.get("kwargs", {})}
    configs = (named.get("generation_config"), getattr(model, "generation_config", None))

    def value(name: str) -> Any:
        values = (named.get(name), *(getattr(config, name, None) for config in configs))
        return next((v for v in values if v is not None), None)

    if (value("num_beams") or 1) > 1:
        raise SlotError(
            f"num_beams={value('num_beams')}: SLOT cannot be used with beam search, which moves "
            "rows of the batch; allowed: 1"
        )
    if value("guidance_scale") not in (None, 1):
        raise SlotError(
            f"guidance_scale={value('guidance_scale')}: SLOT cannot be used with it; allowed: 1"
        )
    if value("cache_implementation") == "paged":
        raise SlotError("cache_implementation='paged': SLOT cannot be used with it")
    for name in _REFUSED:
        if value(name):
            raise SlotError(f"{name}: SLOT cannot be used with it; allowed: greedy and sampling")
    for name in _NOT_TEXT:
        if named.get(name) is not None:
            raise SlotError(f"{name}: SLOT learns from text; allowed: input_ids")


def _prompts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens (B, n) and mask (B, n) bool of a forward pass that sees whole prompts."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None or kwargs.get("inputs_embeds") is not None:
        raise SlotError("inputs_embeds: SLOT learns from tokens; allowed: input_ids")
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise SlotError(
            f"past_key_values: holds {int(cache.get_seq_length())} tokens whose hidden states SLOT "
            "cannot see; allowed: none, or an empty cache"
        )
    if getattr(cache, "is_compileable", False):
        raise SlotError(
            f"past_key_values: SLOT cannot be used with a {type(cache).__name__}, for which "
            "generate compiles the model; allowed: cache_implementation='dynamic'"
        )
    mask = kwargs.get("attention_mask")
    if mask is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise SlotError(
            f"attention_mask: {found}; SLOT needs one value per token: {tuple(tokens.shape)}"
        )
    return tokens, mask != 0
