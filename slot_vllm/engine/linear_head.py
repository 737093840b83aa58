"""The model's head: found by watching it work, checked to be linear, hooked where W h is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from slot_vllm.engine import native
from slot_vllm.kernels.apply_delta import add_bias_rows
from slot_vllm.optim.head import Head
from slot_vllm.params import SlotError

_PROBE_ROWS = 4
# What the model computes and what f(h W^T) gives may differ by the rounding of the logits.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Additions:
    """What one step adds, per row of logits.

    rows: (r,) int64, each row's row in the tables. biases, rounded: see DeltaTable; None where no
    request of the step uses it.
    """

    rows: Tensor
    biases: Tensor | None
    rounded: Tensor | None


class LinearHead:
    """The head of ``model``. Raises SlotError if it is not f(h W^T + bias)."""

    def __init__(self, model: Any, hidden_size: int, dtype: torch.dtype) -> None:
        name = type(model).__name__
        probe = torch.randn(
            _PROBE_ROWS, hidden_size, generator=torch.Generator().manual_seed(0)
        ).to(dtype)
        try:
            calls, logits = _watch(model, probe)
        except Exception as error:
            raise SlotError(
                f"SLOT needs a head for hidden states of size {hidden_size}; "
                f"{name}.compute_logits failed on them: {error}"
            ) from error
        if len(calls) != 1 or logits is None:
            raise SlotError(
                f"SLOT needs one linear head; {name}.compute_logits used {len(calls)} "
                "logits processors"
            )
        self._processor, self._lm_head, self._bias = calls[0]
        weight = getattr(self._lm_head, "weight", None)
        if (
            not isinstance(weight, Tensor)
            or weight.dtype not in _TOLERANCE
            or weight.dim() != 2
            or weight.shape[1] != hidden_size
        ):
            found = "none" if weight is None else f"{tuple(weight.shape)} of {weight.dtype}"
            raise SlotError(
                f"SLOT needs the unquantized weight (vocabulary x {hidden_size}) of a linear head; "
                f"{name}'s {type(self._lm_head).__name__} has {found}"
            )
        head = self.head()
        z = probe.to(weight.device).float() @ head.weight.float().T
        if head.bias is not None:
            z += head.bias.float()
        expected = head.activate(z)
        if logits.shape != expected.shape:
            raise SlotError(
                f"SLOT needs logits = f(h W^T) of shape {tuple(expected.shape)}; "
                f"{name}.compute_logits gives {tuple(logits.shape)}"
            )
        scale = expected.abs().max().clamp(min=1e-3)
        difference = ((logits.float() - expected).abs().max() / scale).item()
        if not difference <= _TOLERANCE[weight.dtype]:
            raise SlotError(
                f"SLOT needs logits = f(h W^T); {name}.compute_logits differs from that by "
                f"{difference:.2g} of the largest logit (allowed: {_TOLERANCE[weight.dtype]:.2g})"
            )

    def head(self) -> Head:
        """The head as it is now: a reload of the weights replaces tensors."""
        size = self._processor.org_vocab_size
        return Head(
            self._lm_head.weight[:size],
            None if self._bias is None else self._bias[:size],
            self._processor.soft_cap,
            self._processor.scale,
        )

    def describe(self) -> str:
        head = self.head()
        parts = [f"{head.vocabulary} x {head.hidden_size} {head.weight.dtype}"]
        if head.bias is not None:
            parts.append("bias")
        if head.soft_cap is not None:
            parts.append(f"soft cap {head.soft_cap}")
        if head.scale != 1.0:
            parts.append(f"scale {head.scale:.4g}")
        return ", ".join(parts)

    def hook(self, take: Callable[[], Additions | None]) -> None:
        """From now on the processor adds what ``take`` returns; None leaves it as it is."""
        processor, original = self._processor, self._processor.forward

        def forward(
            lm_head: nn.Module,
            hidden_states: Tensor,
            embedding_bias: Tensor | None = None,
            # skip_gather, from 0.29 on.
            *rest: Any,
            **options: Any,
        ) -> Tensor | None:
            additions = take()
            if additions is None:
                return original(lm_head, hidden_states, embedding_bias, *rest, **options)
            return self.logits(additions, lm_head, hidden_states, embedding_bias, *rest, **options)

        if native.available():
            processor.slot_hook = native.LogitsHook(take, self.logits)
        else:
            processor.forward = forward

    def logits(
        self,
        additions: Additions,
        lm_head: nn.Module,
        hidden_states: Tensor,
        embedding_bias: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Tensor | None:
        """What the processor's forward gives with ``additions``."""
        if additions.rounded is not None:
            # Out of place: a drafter reads these rows too.
            hidden_states = hidden_states + additions.rounded[additions.rows]
        own = self._processor._get_logits(hidden_states, lm_head, embedding_bias, *rest, **options)
        if own is None:
            return None
        head = self.head()
        return head.activate(own) if additions.biases is None else _shifted(own, additions, head)


def _shifted(own: Tensor, additions: Additions, head: Head) -> Tensor:
    """f(own + bias) in float32, the sampler's dtype; rows without a delta are what the model's own
    f makes of them, in its dtype."""
    assert additions.biases is not None
    plain = None
    if own.dtype != torch.float32 and (head.soft_cap is not None or head.scale != 1.0):
        plain = head.activate(own).float()
    # In place: these are as large as the sampler's own copy. ``own`` is fresh from the product.
    z = own.float()
    add_bias_rows(z, additions.biases, additions.rows)
    if head.soft_cap is not None:
        z.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
    if head.scale != 1.0:
        z.mul_(head.scale)
    if plain is not None:
        z = torch.where((additions.rows == 0).unsqueeze(1), plain, z)
    return z


def _watch(model: Any, probe: Tensor) -> tuple[list[tuple[Any, Any, Tensor | None]], Tensor | None]:
    """The (processor, lm_head, bias) of each logits processor that compute_logits calls."""
    calls: list[tuple[Any, Any, Tensor | None]] = []
    # A LoRA wrapper stands in for the processor and calls the processor's class, not the instance.
    processors = [m for m in model.modules() if _is_processor(m)]
    originals = [m.forward for m in processors]

    def recorder(processor: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(
            lm_head: nn.Module,
            hidden_states: Tensor,
            embedding_bias: Tensor | None = None,
            *rest: Any,
            **options: Any,
        ) -> Any:
            calls.append((processor, getattr(lm_head, "base_layer", lm_head), embedding_bias))
            return original(lm_head, hidden_states, embedding_bias, *rest, **options)

        return forward

    device = next(model.parameters()).device
    try:
        for processor, original in zip(processors, originals, strict=True):
            processor.forward = recorder(processor, original)
        with torch.inference_mode():
            logits = model.compute_logits(probe.to(device))
    finally:
        for processor in processors:
            del processor.forward
    return calls, logits


def _is_processor(module: nn.Module) -> bool:
    return isinstance(module, LogitsProcessor) or isinstance(
        getattr(module, "base_layer", None), LogitsProcessor
    )
