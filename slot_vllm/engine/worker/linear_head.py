"""The model's head: found by watching it work, checked to be linear, hooked where W h is made."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from slot_vllm.engine.worker.additions import Additions
from slot_vllm.engine.worker.own_hooks import has_own_hooks
from slot_vllm.engine.worker.ranks import ALONE, Ranks
from slot_vllm.kernels.apply_delta import add_bias_rows
from slot_vllm.optim.head import PROBE_ROWS, Head, check_difference, check_shape, weight_of
from slot_vllm.optim.shard import Shard
from slot_vllm.params import SlotError


@dataclass(frozen=True)
class LogitsHook:
    """What a patched vLLM finds as the processor's ``slot_hook``.

    take(): this step's additions, or None. logits(additions, lm_head, hidden_states, ...): what its
    forward returns then.
    """

    take: Callable[[], Additions | None]
    logits: Callable[..., Tensor | None]


# Gives what its argument gives, which exchanges nothing; None, on all ranks, if it raises on one.
Attempt = Callable[[Callable[[], Tensor]], Tensor | None]


class LinearHead:
    """The head of ``model``, or this rank's part of it. Raises SlotError if it is not
    f(h W^T + bias), or not sharded over the vocabulary where there are several ranks.

    ranks: those that share it. vocabulary: of the whole head, without its padding. columns: those
    of this rank, [first, stop). vLLM pads the vocabulary at its end and divides it evenly: the last
    ranks may have few columns or none.
    """

    def __init__(
        self, model: Any, hidden_size: int, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        name = type(model).__name__
        self.ranks = ranks
        owner = f"{name}.compute_logits"
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(PROBE_ROWS, hidden_size, generator=generator).to(dtype)
        try:
            calls, logits = _watch(model, probe)
        except Exception as error:
            raise SlotError(
                f"SLOT needs a head for hidden states of size {hidden_size}; "
                f"{owner} failed on them: {error}"
            ) from error
        if len(calls) != 1 or logits is None:
            raise SlotError(
                f"SLOT needs one linear head; {owner} used {len(calls)} logits processors"
            )
        self._processor, self._lm_head, self._bias = calls[0]
        weight = weight_of(self._lm_head, name, hidden_size)
        self.vocabulary: int = self._processor.org_vocab_size
        self.columns = self._own_columns(name, weight.shape[0])
        head = self.head()
        z = head.exact_shift(probe.to(weight.device))
        if head.bias is not None:
            z += head.bias.float()
        expected = head.activate(z)
        check_shape(logits, self.vocabulary, owner)
        scale = logits.float().abs().max().clamp(min=1e-3)
        errors = (logits[:, slice(*self.columns)].float() - expected).abs() / scale
        difference = errors.max().item() if errors.numel() else 0.0
        check_difference(difference, weight.dtype, owner)

    def _own_columns(self, name: str, rows: int) -> tuple[int, int]:
        if self.ranks.size == 1:
            return 0, self.vocabulary
        if getattr(self._lm_head, "tp_size", 1) != self.ranks.size:
            raise SlotError(
                f"SLOT needs a head that is sharded over the vocabulary by the "
                f"{self.ranks.size} tensor-parallel ranks; every rank has all of {name}'s"
            )
        if getattr(self._lm_head, "num_added_embeddings", 0):
            raise SlotError(
                f"SLOT under tensor parallelism needs a vocabulary without added embeddings; "
                f"{name}'s head has {self._lm_head.num_added_embeddings}"
            )
        first = min(self.ranks.rank * rows, self.vocabulary)
        return first, min(first + rows, self.vocabulary)

    def head(self) -> Head:
        """The head as it is now, this rank's columns: a reload of the weights replaces tensors."""
        first, stop = self.columns
        return Head(
            self._lm_head.weight[: stop - first],
            None if self._bias is None else self._bias[: stop - first],
            self._processor.soft_cap,
            self._processor.scale,
        )

    def shard(self) -> Shard | None:
        """What the optimizer needs to know of the other ranks; None if there are none."""
        if self.ranks.size == 1:
            return None
        rows = self._lm_head.weight.shape[0]
        return Shard(
            self.columns[0],
            min(rows, self.vocabulary),
            self.ranks.gather,
            lambda flag: bool(self.ranks.largest([flag])[0]),
        )

    def whole(self, columns: Tensor) -> Tensor:
        """(r, V) from this rank's (r, its columns); all ranks call it."""
        if self.ranks.size == 1:
            return columns
        widest = min(self._lm_head.weight.shape[0], self.vocabulary)
        padded = columns.new_zeros(len(columns), widest)
        padded[:, : columns.shape[1]] = columns
        return self.ranks.gather_columns(padded)[:, : self.vocabulary]

    def describe(self) -> str:
        head = self.head()
        parts = [f"{self.vocabulary} x {head.hidden_size} {head.weight.dtype}"]
        if self.ranks.size > 1:
            parts.append(f"columns {self.columns[0]} to {self.columns[1]} on this rank")
        if head.bias is not None:
            parts.append("bias")
        if head.soft_cap is not None:
            parts.append(f"soft cap {head.soft_cap}")
        if head.scale != 1.0:
            parts.append(f"scale {head.scale:.4g}")
        return ", ".join(parts)

    def hook(self, take: Callable[[], Additions | None], attempt: Attempt) -> None:
        """From now on the processor adds what ``take`` returns; None leaves it as it is. What may
        fail in adding it is an ``attempt``; where one fails, nothing is added. What the model's own
        head raises is in none."""
        processor, original = self._processor, self._processor.forward

        def adding(
            additions: Additions,
            lm_head: nn.Module,
            hidden_states: Tensor,
            embedding_bias: Tensor | None = None,
            skip_gather: bool = False,
        ) -> Tensor | None:
            """``original`` is a patched vLLM's too, which finds nothing more to take."""

            def unchanged(rows: Tensor = hidden_states) -> Tensor | None:
                logits: Tensor | None = original(lm_head, rows, embedding_bias, skip_gather)
                return logits

            adapted, rounded, biases = hidden_states, additions.rounded, additions.biases
            if rounded is not None:
                # Out of place: a drafter reads these rows too.
                sums = attempt(lambda: hidden_states + additions.of(rounded))
                if sums is None:
                    return unchanged()
                adapted = sums
            if biases is None:
                return unchanged(adapted)
            together = self.ranks.size > 1 and not skip_gather
            # Of this rank's columns alone, if its part of W delta is added to these. A LoRA wrapper
            # of the processor adds to gathered logits and refuses to skip the gather.
            alone = together and isinstance(processor, LogitsProcessor)
            own: Tensor | None = processor._get_logits(
                adapted, lm_head, embedding_bias, skip_gather or alone
            )
            if own is None:
                return None
            if together and not alone:
                found = attempt(lambda: additions.of(biases))
            else:
                found = attempt(lambda: self._shifted(own, biases, additions, not alone))
            if found is None:
                # Not ``own``: part of it may be shifted.
                return unchanged()
            if alone:
                return self._gathered(found, own.dtype, additions)
            if together:
                # A copy, as ``own`` is kept for the rows without a delta.
                z = own.float() + self.whole(found)
                return _activated(self.head(), z, own, additions.rows)
            return found

        def forward(*args: Any, **kwargs: Any) -> Tensor | None:
            additions = take()
            if additions is None:
                logits: Tensor | None = original(*args, **kwargs)
                return logits
            return adding(additions, *args, **kwargs)

        if has_own_hooks(type(processor), {"forward": ('"slot_hook"',)}):
            processor.slot_hook = LogitsHook(take, adding)
        else:
            processor.forward = forward

    def _shifted(self, own: Tensor, biases: Tensor, additions: Additions, activate: bool) -> Tensor:
        """``own``, this rank's columns, with W delta."""
        head, z = self.head(), own.float()
        columns = z[:, : head.vocabulary]
        add_bias_rows(columns, biases, additions.rows, additions.factors)
        return _activated(head, z, own, additions.rows) if activate else z

    def _gathered(self, shifted: Tensor, dtype: torch.dtype, additions: Additions) -> Tensor | None:
        """All columns, of which each rank has shifted its own."""
        gathered = self._processor._gather_logits(shifted)
        if gathered is None:
            return None
        z = gathered[..., : self.vocabulary]
        # float32 carried the rows without a delta as they were.
        return _activated(self.head(), z, z.to(dtype), additions.rows)


def _activated(head: Head, z: Tensor, own: Tensor, rows: Tensor) -> Tensor:
    """f(z), in place, in float32, the sampler's dtype; rows without a delta are what the model's
    own f makes of ``own``, in its dtype."""
    plain = None
    if own.dtype != torch.float32 and (head.soft_cap is not None or head.scale != 1.0):
        plain = head.activate(own).float()
    if head.soft_cap is not None:
        z.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
    if head.scale != 1.0:
        z.mul_(head.scale)
    return z if plain is None else torch.where((rows == 0).unsqueeze(1), plain, z)


def _watch(model: Any, probe: Tensor) -> tuple[list[tuple[Any, Any, Tensor | None]], Tensor | None]:
    """The (processor, lm_head, bias) of each logits processor that compute_logits calls."""
    calls: list[tuple[Any, Any, Tensor | None]] = []
    takes = signature(LogitsProcessor.forward)

    def record(processor: nn.Module, args: Any, kwargs: Any) -> None:
        given = takes.bind(processor, *args, **kwargs).arguments
        lm_head = given["lm_head"]
        calls.append(
            (processor, getattr(lm_head, "base_layer", lm_head), given.get("embedding_bias"))
        )

    # A LoRA wrapper stands in for the processor and calls the processor's class, not the instance.
    hooks = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, LogitsProcessor)
        or isinstance(getattr(module, "base_layer", None), LogitsProcessor)
    ]
    try:
        with torch.inference_mode():
            logits = model.compute_logits(probe.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return calls, logits
