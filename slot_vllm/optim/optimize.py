"""Deltas for a ragged batch of prompts, by the closed-form gradient.

delta is shared by all rows of its prompt, so no autograd is needed: with Z0 = H W^T computed once,

    b = W delta;  p = column sums of softmax(f(Z0 + b)) f';  g = W^T (p - c) / (n - 1)

where c counts the targets (with f' at them), and AdamW takes g. T steps cost one n x V x d
product, T passes over Z0 and 2 T - 1 over W; the passes over W are shared by the batch.
Rows of Z0 that do not fit the workspace are computed again in every step, tile by tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slot_vllm.kernels.adamw import adamw_step
from slot_vllm.kernels.softmax_sums import add_softmax_sums
from slot_vllm.optim.head import Head
from slot_vllm.optim.workspace import Workspace, aligned
from slot_vllm.params import SlotParams

_MAX_TILE_ROWS = 64


@dataclass(frozen=True)
class Prompt:
    """hidden: (n, d) last hidden states in the model's dtype. tokens: (n,) int64, same device."""

    hidden: Tensor
    tokens: Tensor
    params: SlotParams

    @property
    def rows(self) -> int:
        """How many rows have a target: the last one has none."""
        return max(self.hidden.shape[0] - 1, 0)


@dataclass(frozen=True)
class Learned:
    """delta: (d,) float32. losses: float32, the mean prompt loss (nats per token) before each
    step and, if asked for, after the last one; empty for prompts of one token. finite: () bool,
    whether delta is as it was learned; one that is not finite is replaced by zero."""

    delta: Tensor
    losses: Tensor
    finite: Tensor


@dataclass(frozen=True)
class _Layout:
    """How a group of requests uses the workspace."""

    tile_rows: int
    cached_rows: int


def smallest_workspace(head: Head) -> int:
    """The bytes that one request with a one-row tile needs."""
    return _vector_bytes(head, 1) + _tile_bytes(head, 1)


def optimize(
    head: Head, prompts: Sequence[Prompt], workspace: Workspace, final_loss: bool = False
) -> list[Learned]:
    """Learn one delta per prompt; the results are in the order of ``prompts``.

    final_loss: also compute the loss after the last step, which costs one more pass.
    All tensors of size V or n x V come from ``workspace``. Raises MemoryError if it is smaller
    than ``smallest_workspace``.
    """
    results: list[Learned | None] = [None] * len(prompts)
    # Requests with many steps first: those still running are then always a prefix.
    order = sorted(
        (i for i, p in enumerate(prompts) if p.rows and p.params.steps),
        key=lambda i: -prompts[i].params.steps,
    )
    capacity = max(1, (workspace.size // 4) // _vector_bytes(head, 1))
    for start in range(0, len(order), capacity):
        group = order[start : start + capacity]
        learned = _optimize_group(head, [prompts[i] for i in group], workspace, final_loss)
        for i, result in zip(group, learned, strict=True):
            results[i] = result
    return [r if r is not None else _nothing_learned(head) for r in results]


def _nothing_learned(head: Head) -> Learned:
    zeros = torch.zeros(head.hidden_size, dtype=torch.float32, device=head.weight.device)
    return Learned(zeros, zeros[:0], torch.ones((), dtype=torch.bool, device=zeros.device))


def _vector_bytes(head: Head, requests: int) -> int:
    """Column sums and bias of each request in float32, and both once more in the model's dtype
    on their way through W."""
    low = head.weight.dtype.itemsize if head.weight.dtype != torch.float32 else 0
    return 2 * aligned(requests * head.vocabulary * 4) + aligned(requests * head.vocabulary * low)


def _tile_bytes(head: Head, rows: int) -> int:
    scratches = 1 if head.soft_cap is None else 2
    elements = rows * head.vocabulary
    return aligned(scratches * elements * 4) + aligned(elements * head.weight.dtype.itemsize)


def _layout(head: Head, rows: int, free: int) -> _Layout:
    itemsize = head.weight.dtype.itemsize
    tile_rows = min(_MAX_TILE_ROWS, rows, max(1, (free // 4) // _tile_bytes(head, 1)))
    left = free - _tile_bytes(head, tile_rows) - aligned(1)
    cached_rows = min(rows, max(0, left // (head.vocabulary * itemsize)))
    return _Layout(tile_rows, cached_rows)


def _tiles(prompts: Sequence[Prompt], layout: _Layout) -> Iterator[tuple[int, int, int, int]]:
    """(request, first row and last row + 1 within it, first row within the group). A tile belongs
    to one request and is cached as a whole or not at all."""
    offset = 0
    for i, prompt in enumerate(prompts):
        start = 0
        while start < prompt.rows:
            stop = min(start + layout.tile_rows, prompt.rows)
            if offset + start < layout.cached_rows:
                stop = min(stop, layout.cached_rows - offset)
            yield i, start, stop, offset + start
            start = stop
        offset += prompt.rows


def _optimize_group(
    head: Head, prompts: Sequence[Prompt], workspace: Workspace, final_loss: bool
) -> list[Learned]:
    device, count = head.weight.device, len(prompts)
    vocabulary = head.vocabulary
    workspace.reset()
    all_sums = workspace.take((count, vocabulary), torch.float32)
    all_biases = workspace.take((count, vocabulary), torch.float32)
    low = None
    if head.weight.dtype != torch.float32:
        low = workspace.take((count, vocabulary), head.weight.dtype)
    rows = sum(p.rows for p in prompts)
    layout = _layout(head, rows, workspace.free)
    scratch = workspace.take(
        (1 if head.soft_cap is None else 2, layout.tile_rows, vocabulary), torch.float32
    )
    fresh = workspace.take((layout.tile_rows, vocabulary), head.weight.dtype)
    cache = workspace.take((layout.cached_rows, vocabulary), head.weight.dtype)
    _fill_cache(head, prompts, cache)

    settings = to_device([_settings(p) for p in prompts], torch.float32, device)
    lr, beta1, beta2, eps, weight_decay, inverse_rows = settings.split(1, dim=1)
    deltas = torch.zeros(count, head.hidden_size, dtype=torch.float32, device=device)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    steps = [p.params.steps for p in prompts]
    passes = steps[0] + int(final_loss)
    losses = torch.zeros(count, passes, dtype=torch.float64, device=device)
    row_losses = torch.empty(layout.tile_rows, dtype=torch.float32, device=device)
    tiles = list(_tiles(prompts, layout))

    for t in range(1, passes + 1):
        # In a request's pass after its last step only the loss is wanted.
        active = sum(s + int(final_loss) >= t for s in steps)
        sums, biases = all_sums[:active].zero_(), all_biases[:active]
        if t > 1:
            _shift(head, deltas[:active], biases, low)
        for i, start, stop, offset in tiles:
            if i >= active:
                break
            size = stop - start
            if offset < layout.cached_rows:
                logits = cache[offset : offset + size]
            else:
                logits = fresh[:size]
                head.product(prompts[i].hidden[start:stop], out=logits)
            add_softmax_sums(
                logits,
                biases[i] if t > 1 else None,
                prompts[i].tokens[start + 1 : stop + 1],
                head.soft_cap,
                head.scale,
                scratch[:, :size],
                sums[i],
                row_losses[:size],
            )
            losses[i, t - 1] += row_losses[:size].sum(dtype=torch.float64)
        learning = sum(s >= t for s in steps)
        if learning:
            gradient = _pull_back(head, sums[:learning], low) * inverse_rows[:learning]
            adamw_step(
                deltas[:learning],
                gradient,
                first[:learning],
                second[:learning],
                t,
                *(s[:learning] for s in (lr, beta1, beta2, eps, weight_decay)),
            )

    mean = (losses * inverse_rows.double()).float()
    finite = torch.isfinite(deltas).all(dim=1)
    deltas = torch.where(finite.unsqueeze(1), deltas, 0.0)
    # Copies, so that one result that is kept does not keep the whole group's memory.
    return [
        Learned(deltas[i].clone(), mean[i, : steps[i] + int(final_loss)].clone(), finite[i].clone())
        for i in range(count)
    ]


def _fill_cache(head: Head, prompts: Sequence[Prompt], cache: Tensor) -> None:
    """The leading rows of Z0, in as few products as there are prompts with many rows."""
    offset = 0
    waiting: list[Tensor] = []
    for prompt in prompts:
        room = cache.shape[0] - offset - sum(h.shape[0] for h in waiting)
        waiting.append(prompt.hidden[: min(prompt.rows, room)])
        count = sum(h.shape[0] for h in waiting)
        full = offset + count == cache.shape[0]
        # Short prompts share a product: below some tens of rows W is read for nothing else.
        if count and (full or count >= _MAX_TILE_ROWS or prompt is prompts[-1]):
            hidden = waiting[0] if len(waiting) == 1 else torch.cat(waiting)
            head.product(hidden, out=cache[offset : offset + count])
            offset, waiting = offset + count, []
        if full:
            return


def _shift(head: Head, deltas: Tensor, out: Tensor, low: Tensor | None) -> None:
    if low is None:
        torch.mm(deltas, head.weight.T, out=out)
    else:
        out.copy_(torch.mm(deltas.to(low.dtype), head.weight.T, out=low[: len(deltas)]))


def _pull_back(head: Head, sums: Tensor, low: Tensor | None) -> Tensor:
    if low is None:
        return sums @ head.weight
    return (low[: len(sums)].copy_(sums) @ head.weight).float()


def _settings(prompt: Prompt) -> list[float]:
    params = prompt.params
    return [params.lr, *params.betas, params.eps, params.weight_decay, 1.0 / prompt.rows]


def to_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor on ``device``, without waiting for what runs there."""
    pinned = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
