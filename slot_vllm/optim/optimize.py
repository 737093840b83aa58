"""Deltas for a ragged batch of prompts, by the closed-form gradient.

delta is shared by all rows of its prompt, so no autograd is needed: with Z0 = H W^T computed once,

    b = W delta;  p = column sums of softmax(f(Z0 + b)) f';  g = W^T (p - c) / (n - 1)

where c counts the targets (with f' at them), and AdamW takes g. T steps cost one n x V x d
product, T passes over Z0 and 2 T - 1 over W; the passes over W are shared by the batch.
Rows of Z0 that do not fit the workspace are computed again in every step, tile by tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from slot_vllm.kernels import backend
from slot_vllm.kernels.adamw import adamw_step
from slot_vllm.kernels.pull_back import pull_back
from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.device import to_device
from slot_vllm.optim.head import Head
from slot_vllm.optim.parts import Parts, is_whole, split
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.rows import Segment
from slot_vllm.optim.safeguards import Safeguards
from slot_vllm.optim.shard import Exchange, Shard
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams


def _one() -> Tensor:
    return torch.ones(())


@dataclass(frozen=True)
class Learned:
    """delta: (d,) float32. losses: float32, the mean loss (nats per token) of the rows that are
    learned from, before each step and, if asked for, with what is applied; empty where there is
    nothing to learn from. finite: () bool, whether delta is as it was learned; it is zero where a
    hidden state, a loss or one of its coordinates was not finite. scale: () float32, what
    safeguards multiplied delta by; 0 where all rows were held out. arriving: on CUDA, ``finite`` on
    its way to the host; true until it comes. rows: how many it was learned from.

    If the effects were asked for: held_losses: (2,) float32, with a holdout, the mean loss of the
    rows held out, without delta and with what the holdout left of it. last_kl: () float32, nats,
    KL(adapted || own) of the next-token distribution at the prompt's last position."""

    delta: Tensor
    losses: Tensor
    finite: Tensor
    scale: Tensor = field(default_factory=_one)
    arriving: Tensor | None = None
    rows: int = 0
    held_losses: Tensor | None = None
    last_kl: Tensor | None = None

    def known_not_finite(self, waits: bool = False) -> bool:
        """Whether the host knows it by now. waits: for the device; else nothing does."""
        if waits:
            return not self.finite
        known = self.finite if self.finite.device.type == "cpu" else self.arriving
        return known is not None and not known


class Form(Protocol):
    """A way to the column sums. Made for one group of prompts, from the emptied workspace."""

    def __init__(self, head: Head, prompts: Sequence[Prompt], workspace: Workspace) -> None: ...

    @staticmethod
    def vector_bytes(head: Head) -> int: ...

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int: ...

    def sums(self, active: int, deltas: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def logits(self, request: int) -> Iterator[Segment]: ...


def form_for(head: Head, sharded: bool = False) -> type[Form]:
    """The fastest form that serves the head on its device. Only one knows shards."""
    if sharded or backend.uses_triton(head.weight):
        return TwoPassForm
    if head.weight.device.type == "cpu" and head.soft_cap is None:
        return CachedForm
    return PlainForm


def smallest_workspace(head: Head, shard: Shard | None = None) -> int:
    """The bytes that one request with a one-row tile needs, of the default settings, on every rank
    alike."""
    form = form_for(head, shard is not None)
    if shard is not None:
        head = shard.widest_head(head)
    return form.vector_bytes(head) + form.smallest_rows_bytes(head)


def smallest_workspace_for_all(head: Head, shard: Shard | None = None) -> int:
    """The same of any settings that a request may have."""
    form = form_for(head, shard is not None)
    if shard is not None:
        head = shard.widest_head(head)
    # Three parts of a prompt; delta's shift.
    return (
        3 * form.vector_bytes(head)
        + 4 * form.smallest_rows_bytes(head)
        + Safeguards.vector_bytes(head)
        # Of what is left then, tiles take an eighth at most.
        + 8 * Safeguards.smallest_rows_bytes(head)
    )


def optimize(
    head: Head,
    prompts: Sequence[Prompt],
    workspace: Workspace,
    final_loss: bool = False,
    form: type[Form] | None = None,
    shard: Shard | None = None,
    effects: bool = False,
) -> list[Learned]:
    """Learn one delta per prompt; the results are in the order of ``prompts``.

    final_loss: also compute the loss with what is applied, which costs one more pass.
    form: how, if not as ``form_for`` says.
    shard: set if ``head`` is one rank's part of the vocabulary. All ranks then call this with the
    same prompts, with whole hidden states and the tokens of the whole vocabulary, and workspaces of
    one size, and get the same deltas; ``shard`` says what they exchange. What fails on one rank is
    an error on all (OtherRankFailed on those that are well).
    effects: also find ``held_losses`` and ``last_kl``, for one more row of each prompt and a pass
    over W.
    All tensors of size V or n x V come from ``workspace``. Raises MemoryError if it is smaller than
    ``smallest_workspace`` (``smallest_workspace_for_all`` for settings that are not the defaults);
    ValueError for a prompt whose ``counts`` are missing.
    """
    results: list[Learned | None] = [None] * len(prompts)
    parts = _split(prompts, shard, effects)
    # Requests with many steps first: those still running are then always a prefix.
    order = sorted(
        (i for i, p in enumerate(parts) if p.fit.rows and p.fit.params.steps),
        key=lambda i: -prompts[i].params.steps,
    )
    largest = head if shard is None else shard.widest_head(head)
    chosen = form or form_for(head, shard is not None)
    for group in _groups(order, chosen, largest, parts, workspace):
        learned = _optimize_group(
            chosen, head, [parts[i] for i in group], workspace, final_loss, shard, effects
        )
        for i, result in zip(group, learned, strict=True):
            results[i] = result
    return [
        _nothing_learned(head, part) if result is None else result
        for result, part in zip(results, parts, strict=True)
    ]


def _split(prompts: Sequence[Prompt], shard: Shard | None, effects: bool) -> list[Parts]:
    if shard is None or not (effects or any(not is_whole(prompt.params) for prompt in prompts)):
        return [split(prompt, effects) for prompt in prompts]
    # It copies hidden states: one rank may lack the memory.
    with Exchange(shard, prompts[0].hidden.device).agreeing():
        return [split(prompt, effects) for prompt in prompts]


# Each takes blocks of another size, and the last is a ragged batch.
_WARM_UP_ROWS = ([2], [17], [33], [65], [129], [9, 3])


def warm_up(head: Head, workspace: Workspace, shard: Shard | None = None) -> None:
    """Compile the Triton kernels that serving will launch, where there are any: no request should
    wait for that. With shards, all ranks call it."""
    if not backend.uses_triton(head.weight):
        return
    device, dtype = head.weight.device, head.weight.dtype
    for lengths in _WARM_UP_ROWS:
        prompts = [
            Prompt(
                torch.zeros(n, head.hidden_size, dtype=dtype, device=device),
                torch.zeros(n, dtype=torch.int64, device=device),
                SlotParams(steps=2),
            )
            for n in lengths
        ]
        optimize(head, prompts, workspace, shard=shard)


def _groups(
    order: Sequence[int],
    form: type[Form],
    head: Head,
    prompts: Sequence[Parts],
    workspace: Workspace,
) -> Iterator[list[int]]:
    """``order`` in parts whose rows of Z0 stay in the workspace together: computing rows again in
    every step costs more than not sharing the passes over W. A prompt that does not fit at all is
    alone. An eighth of the workspace is left for what a form needs besides.
    """
    row_bytes = head.vocabulary * head.weight.dtype.itemsize
    room = workspace.size - workspace.size // 8
    quarter = workspace.size // 4
    group: list[int] = []
    used = vectors = 0
    for i in order:
        own = _vector_bytes(form, head, prompts[i])
        needed = own + sum(part.rows for part in prompts[i].all) * row_bytes
        if group and (used + needed > room or vectors + own > quarter):
            yield group
            group, used, vectors = [], 0, 0
        group.append(i)
        used += needed
        vectors += own
    if group:
        yield group


def _vector_bytes(form: type[Form], head: Head, parts: Parts) -> int:
    """What one request needs besides its rows."""
    own = len(parts.all) * form.vector_bytes(head)
    return own + (Safeguards.vector_bytes(head) if parts.examined else 0)


def _nothing_learned(head: Head, parts: Parts) -> Learned:
    zeros = torch.zeros(head.hidden_size, dtype=torch.float32, device=head.weight.device)
    finite = torch.ones((), dtype=torch.bool, device=zeros.device)
    return Learned(zeros, zeros[:0], finite, zeros.new_full((), 0.0 if parts.all_held else 1.0))


def _optimize_group(
    form: type[Form],
    head: Head,
    group: Sequence[Parts],
    workspace: Workspace,
    final_loss: bool,
    shard: Shard | None,
    effects: bool,
) -> list[Learned]:
    workspace.reset()
    exchange = Exchange(shard, head.weight.device)
    with exchange.agreeing():
        learning = _Learning(form, head, group, workspace, final_loss, exchange.shard, effects)
        exchange.expect(learning.gathered())
    with exchange.agreeing():
        return learning.learn()


class _Learning:
    """Of one group of prompts. Takes what it needs of the workspace, the form all that is left."""

    def __init__(
        self,
        form: type[Form],
        head: Head,
        group: Sequence[Parts],
        workspace: Workspace,
        final_loss: bool,
        shard: Shard | None,
        effects: bool,
    ) -> None:
        self._head, self._group, self._shard = head, group, shard
        self._effects = effects
        self._fits = [parts.fit for parts in group]
        self._steps = [fit.params.steps for fit in self._fits]
        self._safeguards = Safeguards(head, group, workspace, shard, effects)
        prompts = [*self._fits, *self._safeguards.prompts]
        self._logits: Form
        if shard is None:
            self._logits = form(head, prompts, workspace)
        else:
            self._logits = TwoPassForm(head, prompts, workspace, shard)
        self._final_loss = final_loss
        # What is applied is known only after the last step.
        self._final_apart = final_loss and bool(self._safeguards)
        self._passes = self._steps[0] + int(final_loss and not self._final_apart)

    def _active(self, t: int) -> int:
        """Requests in pass t, 1 at first; in one's pass after its last step only the loss is
        wanted."""
        return sum(s + self._passes - self._steps[0] >= t for s in self._steps)

    def _taking(self, t: int) -> int:
        """Requests that take step t."""
        return sum(s >= t for s in self._steps)

    def gathered(self) -> list[tuple[int, ...]]:
        """The shapes of what a rank gives to the others in ``learn``, in their order."""
        if self._shard is None:
            return []
        assert isinstance(self._logits, TwoPassForm)
        shapes: list[tuple[int, ...]] = []
        for t in range(1, self._passes + 1):
            shapes += [(2, rows) for rows in self._logits.chunks(self._active(t), t == 1)]
            if learning := self._taking(t):
                shapes.append((learning, self._head.hidden_size))
        shapes += self._safeguards.gathered()
        if self._final_apart:
            shapes += [(2, rows) for rows in self._logits.chunks(len(self._group), False)]
        return shapes + self._safeguards.gathered_for_last_kl()

    def learn(self) -> list[Learned]:
        head, logits, shard = self._head, self._logits, self._shard
        device, count, steps = head.weight.device, len(self._group), self._steps
        settings = to_device([_adamw_settings(fit) for fit in self._fits], torch.float32, device)
        inverse_rows = to_device([[1.0 / fit.rows] for fit in self._fits], torch.float32, device)
        reductions = to_device([[_reduction(fit)] for fit in self._fits], torch.float32, device)
        deltas = torch.zeros(count, head.hidden_size, dtype=torch.float32, device=device)
        first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
        size = (count, steps[0] + int(self._final_loss))
        losses = torch.zeros(size, dtype=torch.float64, device=device)

        for t in range(1, self._passes + 1):
            active = self._active(t)
            sums, losses[:active, t - 1] = logits.sums(active, deltas[:active] if t > 1 else None)
            learning = self._taking(t)
            if not learning:
                continue
            gradient = pull_back(head.weight, sums[:learning])
            if shard is not None:
                gradient = shard.add(gradient)
            gradient = gradient * reductions[:learning]
            adamw_step(
                deltas[:learning],
                gradient,
                first[:learning],
                second[:learning],
                t,
                *settings[:learning].split(1, dim=1),
            )

        # A gradient that is not finite leaves a delta that is not; of hidden states that are not,
        # the kernels' exponentials need not tell.
        finite = torch.isfinite(deltas).all(dim=1) & torch.isfinite(losses).all(dim=1)
        finite &= torch.stack([_is_finite(parts.prompt.hidden) for parts in self._group])
        deltas = _zero_unless(finite, deltas)
        scales = torch.ones(count, dtype=torch.float32, device=device)
        if self._safeguards:
            scales = self._safeguards.scales(logits, deltas)
            deltas *= scales.unsqueeze(1)
        if self._final_apart:
            _, final = logits.sums(count, deltas)
            for i, s in enumerate(steps):
                losses[i, s] = final[i]
            finite &= torch.isfinite(final)
            deltas = _zero_unless(finite, deltas)
        held = self._safeguards.held_losses
        kl = self._safeguards.last_kl(logits, scales) if self._effects else None
        mean = (losses * inverse_rows.double()).float()
        arriving = _to_host(finite) if device.type == "cuda" else [None] * count
        # Copies, so that one result that is kept does not keep the whole group's memory.
        return [
            Learned(
                deltas[i].clone(),
                mean[i, : steps[i] + int(self._final_loss)].clone(),
                finite[i].clone(),
                scales[i].clone(),
                arriving[i],
                self._fits[i].rows,
                held[i].clone() if i in held else None,
                None if kl is None else kl[i].clone(),
            )
            for i in range(count)
        ]


def _zero_unless(finite: Tensor, deltas: Tensor) -> Tensor:
    return torch.where(finite.unsqueeze(1), deltas, 0.0)


def _is_finite(hidden: Tensor) -> Tensor:
    """() bool, without temporaries of the size of ``hidden``."""
    low, high = torch.aminmax(hidden)
    return torch.isfinite(low) & torch.isfinite(high)


def _to_host(finite: Tensor) -> Sequence[Tensor]:
    arriving = torch.ones(len(finite), dtype=torch.bool, pin_memory=True)
    arriving.copy_(finite, non_blocking=True)
    return arriving.unbind()


def _adamw_settings(fit: Prompt) -> list[float]:
    p = fit.params
    return [p.lr, *p.betas, p.eps, p.weight_decay]


def _reduction(fit: Prompt) -> float:
    mean = 1.0 / fit.rows
    return mean if fit.params.reduction == "mean" else mean / fit.rows
