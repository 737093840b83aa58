"""Deltas for a ragged batch of prompts, by the closed-form gradient.

delta is shared by all rows of its prompt, so no autograd is needed: with Z0 = H W^T computed once,

    b = W delta;  p = column sums of softmax(f(Z0 + b)) f';  g = W^T (p - c) / (n - 1)

where c counts the targets (with f' at them), and AdamW takes g. T steps cost one n x V x d
product, T passes over Z0 and 2 T - 1 over W; the passes over W are shared by the batch.
Rows of Z0 that do not fit the workspace are computed again in every step, tile by tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slot_vllm.kernels import backend
from slot_vllm.kernels.adamw import adamw_step
from slot_vllm.kernels.pull_back import pull_back
from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.head import Head
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import Exchange, Shard, gathered_shapes
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Learned:
    """delta: (d,) float32. losses: float32, the mean prompt loss (nats per token) before each
    step and, if asked for, after the last one; empty for prompts of one token. finite: () bool,
    whether delta is as it was learned; it is zero where a hidden state, a loss or a coordinate of
    it was not finite. arriving: on CUDA, ``finite`` on its way to the host; true until it comes."""

    delta: Tensor
    losses: Tensor
    finite: Tensor
    arriving: Tensor | None = None

    @property
    def known_not_finite(self) -> bool:
        """Whether the host knows it by now: nothing waits for the device."""
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


def form_for(head: Head, sharded: bool = False) -> type[Form]:
    """The fastest form that serves the head on its device. Only one knows shards."""
    if sharded or backend.uses_triton(head.weight):
        return TwoPassForm
    if head.weight.device.type == "cpu" and head.soft_cap is None:
        return CachedForm
    return PlainForm


def smallest_workspace(head: Head, shard: Shard | None = None) -> int:
    """The bytes that one request with a one-row tile needs, on every rank alike."""
    form = form_for(head, shard is not None)
    if shard is not None:
        head = shard.widest_head(head)
    return form.vector_bytes(head) + form.smallest_rows_bytes(head)


def optimize(
    head: Head,
    prompts: Sequence[Prompt],
    workspace: Workspace,
    final_loss: bool = False,
    form: type[Form] | None = None,
    shard: Shard | None = None,
) -> list[Learned]:
    """Learn one delta per prompt; the results are in the order of ``prompts``.

    final_loss: also compute the loss after the last step, which costs one more pass.
    form: how, if not as ``form_for`` says.
    shard: set if ``head`` is one rank's part of the vocabulary. All ranks then call this with the
    same prompts, with whole hidden states and the tokens of the whole vocabulary, and workspaces of
    one size, and get the same deltas; ``shard`` says what they exchange. What fails on one rank is
    an error on all (OtherRankFailed on those that are well).
    All tensors of size V or n x V come from ``workspace``. Raises MemoryError if it is smaller
    than ``smallest_workspace``.
    """
    results: list[Learned | None] = [None] * len(prompts)
    # Requests with many steps first: those still running are then always a prefix.
    order = sorted(
        (i for i, p in enumerate(prompts) if p.rows and p.params.steps),
        key=lambda i: -prompts[i].params.steps,
    )
    form = form or form_for(head, shard is not None)
    widest = head if shard is None else shard.widest_head(head)
    for group in _groups(order, form, widest, prompts, workspace):
        own = [prompts[i] for i in group]
        learned = _optimize_group(form, head, own, workspace, final_loss, shard)
        for i, result in zip(group, learned, strict=True):
            results[i] = result
    return [r if r is not None else _nothing_learned(head) for r in results]


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
    prompts: Sequence[Prompt],
    workspace: Workspace,
) -> Iterator[list[int]]:
    """``order`` in parts whose rows of Z0 stay in the workspace together: computing rows again in
    every step costs more than not sharing the passes over W. A prompt that does not fit at all is
    alone. An eighth of the workspace is left for what a form needs besides.
    """
    row_bytes = head.vocabulary * head.weight.dtype.itemsize
    room = workspace.size - workspace.size // 8
    capacity = max(1, (workspace.size // 4) // form.vector_bytes(head))
    group: list[int] = []
    used = 0
    for i in order:
        needed = form.vector_bytes(head) + prompts[i].rows * row_bytes
        if group and (used + needed > room or len(group) == capacity):
            yield group
            group, used = [], 0
        group.append(i)
        used += needed
    if group:
        yield group


def _nothing_learned(head: Head) -> Learned:
    zeros = torch.zeros(head.hidden_size, dtype=torch.float32, device=head.weight.device)
    return Learned(zeros, zeros[:0], torch.ones((), dtype=torch.bool, device=zeros.device))


def _optimize_group(
    form: type[Form],
    head: Head,
    prompts: Sequence[Prompt],
    workspace: Workspace,
    final_loss: bool,
    shard: Shard | None,
) -> list[Learned]:
    workspace.reset()
    if shard is None:
        return _learn(form(head, prompts, workspace), head, prompts, final_loss, None)
    exchange = Exchange(shard, head.weight.device)
    with exchange.agreeing():
        logits = TwoPassForm(head, prompts, workspace, exchange.shard)
        steps = [p.params.steps for p in prompts]
        shapes = gathered_shapes(steps, final_loss, logits.chunks, head.hidden_size)
    exchange.expect(shapes)
    with exchange.agreeing():
        return _learn(logits, head, prompts, final_loss, exchange.shard)


def _learn(
    logits: Form,
    head: Head,
    prompts: Sequence[Prompt],
    final_loss: bool,
    shard: Shard | None,
) -> list[Learned]:
    device, count = head.weight.device, len(prompts)
    settings = to_device([_settings(p) for p in prompts], torch.float32, device)
    lr, beta1, beta2, eps, weight_decay, inverse_rows = settings.split(1, dim=1)
    deltas = torch.zeros(count, head.hidden_size, dtype=torch.float32, device=device)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    steps = [p.params.steps for p in prompts]
    passes = steps[0] + int(final_loss)
    losses = torch.zeros(count, passes, dtype=torch.float64, device=device)

    for t in range(1, passes + 1):
        # In a request's pass after its last step only the loss is wanted.
        active = sum(s + int(final_loss) >= t for s in steps)
        sums, losses[:active, t - 1] = logits.sums(active, deltas[:active] if t > 1 else None)
        learning = sum(s >= t for s in steps)
        if learning:
            gradient = pull_back(head.weight, sums[:learning])
            if shard is not None:
                gradient = shard.add(gradient)
            adamw_step(
                deltas[:learning],
                gradient * inverse_rows[:learning],
                first[:learning],
                second[:learning],
                t,
                *(s[:learning] for s in (lr, beta1, beta2, eps, weight_decay)),
            )

    mean = (losses * inverse_rows.double()).float()
    # A gradient that is not finite leaves a delta that is not; of hidden states that are not, the
    # kernels' exponentials need not tell.
    finite = torch.isfinite(deltas).all(dim=1) & torch.isfinite(losses).all(dim=1)
    finite &= torch.stack([_is_finite(p.hidden) for p in prompts])
    deltas = torch.where(finite.unsqueeze(1), deltas, 0.0)
    arriving = _to_host(finite) if device.type == "cuda" else [None] * count
    # Copies, so that one result that is kept does not keep the whole group's memory.
    return [
        Learned(
            deltas[i].clone(),
            mean[i, : steps[i] + int(final_loss)].clone(),
            finite[i].clone(),
            arriving[i],
        )
        for i in range(count)
    ]


def _is_finite(hidden: Tensor) -> Tensor:
    """() bool, without temporaries of the size of ``hidden``."""
    low, high = torch.aminmax(hidden)
    return torch.isfinite(low) & torch.isfinite(high)


def _to_host(finite: Tensor) -> Sequence[Tensor]:
    arriving = torch.ones(len(finite), dtype=torch.bool, pin_memory=True)
    arriving.copy_(finite, non_blocking=True)
    return arriving.unbind()


def _settings(prompt: Prompt) -> list[float]:
    params = prompt.params
    return [params.lr, *params.betas, params.eps, params.weight_decay, 1.0 / prompt.rows]


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on ``device``, without waiting for what runs there."""
    pinned = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
