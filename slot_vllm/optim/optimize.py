"""Deltas for a ragged batch of prompts, by the closed-form gradient.

delta is shared by all rows of its prompt, so no autograd is needed: with Z0 = H W^T computed once,

    b = W delta;  p = column sums of softmax(f(Z0 + b)) f';  g = W^T (p - c) / (n - 1)

where c counts the targets (with f' at them), and AdamW takes g. T steps cost one n x V x d
product, T passes over Z0 and 2 T - 1 over W; the passes over W are shared by the batch.
Rows of Z0 that do not fit the workspace are computed again in every step, tile by tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slot_vllm.kernels.adamw import AdamW, adamw_step
from slot_vllm.kernels.device import to_device
from slot_vllm.kernels.pull_back import pull_back
from slot_vllm.optim.form import Form, form_for
from slot_vllm.optim.head import Head
from slot_vllm.optim.last_kl import last_kl
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import Exchange, Shard
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace


@dataclass(frozen=True)
class Learned:
    """delta: (d,) float32. losses: float32, the mean loss (nats per token) of the rows that are
    learned from, before each step and, if asked for, after the last; empty where there is nothing
    to learn from. finite: () bool, whether delta is as it was learned; it is zero where a hidden
    state, a loss or one of its coordinates was not finite. arriving: on CUDA, ``finite`` on its way
    to the host; true until it comes. rows: how many it was learned from. last_kl: () float32, nats,
    if asked for: KL(adapted || own) of the next-token distribution at the prompt's last position.
    """

    delta: Tensor
    losses: Tensor
    finite: Tensor
    arriving: Tensor | None = None
    rows: int = 0
    last_kl: Tensor | None = None

    def known_not_finite(self, waits: bool = False) -> bool:
        """Whether the host knows it by now. waits: for the device; else nothing does."""
        if waits:
            return not self.finite
        known = self.finite if self.finite.device.type == "cpu" else self.arriving
        return known is not None and not known


def optimize(
    head: Head,
    prompts: Sequence[Prompt],
    workspace: Workspace,
    final_loss: bool = False,
    form: type[Form] | None = None,
    shard: Shard | None = None,
    with_last_kl: bool = False,
) -> list[Learned]:
    """Learn one delta per prompt; the results are in the order of ``prompts``.

    final_loss: also compute the loss after the last step, which costs one more pass.
    form: how, if not as ``form_for`` says.
    shard: set if ``head`` is one rank's part of the vocabulary. All ranks then call this with the
    same prompts, with whole hidden states and the tokens of the whole vocabulary, and workspaces of
    one size, and get the same deltas; ``shard`` says what they exchange. What fails on one rank is
    an error on all (OtherRankFailed on those that are well).
    with_last_kl: also compute ``last_kl``, which costs one more pass over W.
    All tensors of size V or n x V come from ``workspace``. Raises MemoryError if it is smaller than
    ``smallest_workspace``; ValueError for a prompt whose ``counts`` are missing.
    """
    chosen = form or form_for(head, shard is not None)
    largest = head if shard is None else shard.widest_head(head)
    fits = _fits(prompts, shard)
    # Requests with many steps first: those still running are then always a prefix.
    order = sorted(
        (i for i, fit in enumerate(fits) if fit.rows and fit.params.steps),
        key=lambda i: -fits[i].params.steps,
    )
    results: dict[int, Learned] = {}
    for group in _groups(order, chosen, largest, fits, workspace):
        workspace.reset()
        own, hidden = [fits[i] for i in group], [prompts[i].hidden for i in group]
        learned = _learn(chosen, head, own, hidden, workspace, final_loss, shard, with_last_kl)
        results.update(zip(group, learned, strict=True))
    return [results.get(i) or _nothing_learned(head) for i in range(len(prompts))]


def _fits(prompts: Sequence[Prompt], shard: Shard | None) -> list[Prompt]:
    """With the rows alone that are learned from."""
    if shard is None or all(prompt.all_count for prompt in prompts):
        return [prompt.of_rows_that_count() for prompt in prompts]
    # It copies hidden states: one rank may lack the memory.
    with Exchange(shard, prompts[0].hidden.device).agreeing():
        return [prompt.of_rows_that_count() for prompt in prompts]


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
    vector_bytes = form.vector_bytes(head)
    room = workspace.size - workspace.size // 8
    most = max(1, workspace.size // 4 // vector_bytes)
    group: list[int] = []
    used = 0
    for i in order:
        needed = vector_bytes + prompts[i].rows * row_bytes
        if group and (used + needed > room or len(group) == most):
            yield group
            group, used = [], 0
        group.append(i)
        used += needed
    if group:
        yield group


def _learn(
    form: type[Form],
    head: Head,
    fits: Sequence[Prompt],
    hidden: Sequence[Tensor],
    workspace: Workspace,
    final_loss: bool,
    shard: Shard | None,
    with_last_kl: bool,
) -> list[Learned]:
    """Of one group, the prompts with most steps first. fits: their rows that are learned from.
    hidden: those of all their tokens."""
    device = head.weight.device
    exchange = Exchange(shard, device)
    shard = exchange.shard
    logits: Form
    with exchange.agreeing():
        if shard is None:
            logits = form(head, fits, workspace)
        else:
            logits = TwoPassForm(head, fits, workspace, shard)
            exchange.expect(_gathered(logits, head, fits, final_loss, with_last_kl))
    with exchange.agreeing():
        deltas, losses = _take_steps(head, logits, fits, final_loss, shard)
        # A gradient that is not finite leaves a delta that is not; of hidden states that are not,
        # the kernels' exponentials need not tell.
        finite = torch.isfinite(deltas).all(dim=1) & torch.isfinite(losses).all(dim=1)
        finite &= torch.stack([_is_finite(own) for own in hidden])
        deltas = torch.where(finite.unsqueeze(1), deltas, 0.0)
        kl = None
        if with_last_kl:
            last = torch.stack([own[-1] for own in hidden])
            kl = last_kl(head, last, deltas, workspace, shard)
        arriving = _to_host(finite) if device.type == "cuda" else [None] * len(fits)
        # Copies, so that one result that is kept does not keep the whole group's memory.
        return [
            Learned(
                deltas[i].clone(),
                losses[i, : fit.params.steps + int(final_loss)].clone(),
                finite[i].clone(),
                arriving[i],
                fit.rows,
                None if kl is None else kl[i].clone(),
            )
            for i, fit in enumerate(fits)
        ]


def _take_steps(
    head: Head, logits: Form, fits: Sequence[Prompt], final_loss: bool, shard: Shard | None
) -> tuple[Tensor, Tensor]:
    """Deltas (B, d) and mean losses (B, passes), float32."""
    device, count = head.weight.device, len(fits)
    adamw = [[p.lr, *p.betas, p.eps, p.weight_decay] for p in (fit.params for fit in fits)]
    settings = to_device(adamw, torch.float32, device)
    inverse_rows = to_device([[1.0 / fit.rows] for fit in fits], torch.float32, device)
    reductions = to_device([[_reduction(fit)] for fit in fits], torch.float32, device)
    state = AdamW.at_zero(settings, head.hidden_size)
    deltas = state.parameter
    passes = fits[0].params.steps + int(final_loss)
    losses = torch.zeros(count, passes, dtype=torch.float64, device=device)
    for t in range(1, passes + 1):
        active, learning = _active(fits, t, final_loss), _active(fits, t)
        sums, losses[:active, t - 1] = logits.sums(active, deltas[:active] if t > 1 else None)
        if not learning:
            continue
        gradient = pull_back(head.weight, sums[:learning])
        if shard is not None:
            gradient = shard.add(gradient)
        adamw_step(gradient * reductions[:learning], state, t)
    return deltas, (losses * inverse_rows.double()).float()


def _active(fits: Sequence[Prompt], t: int, final_loss: bool = False) -> int:
    """How many take step t, from 1 on; final_loss: or want the loss after their last one."""
    return sum(fit.params.steps + int(final_loss) >= t for fit in fits)


def _gathered(
    form: TwoPassForm, head: Head, fits: Sequence[Prompt], final_loss: bool, with_last_kl: bool
) -> list[tuple[int, ...]]:
    """The shapes of what a rank gives to the others, in their order."""
    shapes: list[tuple[int, ...]] = []
    for t in range(1, fits[0].params.steps + int(final_loss) + 1):
        shapes += [(2, rows) for rows in form.chunks(_active(fits, t, final_loss), t == 1)]
        if learning := _active(fits, t):
            shapes.append((learning, head.hidden_size))
    return [*shapes, (3, len(fits))] if with_last_kl else shapes


def _reduction(fit: Prompt) -> float:
    mean = 1.0 / fit.rows
    return mean if fit.params.reduction == "mean" else mean / fit.rows


def _is_finite(hidden: Tensor) -> Tensor:
    """() bool, without temporaries of the size of ``hidden``."""
    low, high = torch.aminmax(hidden)
    return torch.isfinite(low) & torch.isfinite(high)


def _to_host(finite: Tensor) -> Sequence[Tensor]:
    arriving = torch.ones(len(finite), dtype=torch.bool, pin_memory=True)
    arriving.copy_(finite, non_blocking=True)
    return arriving.unbind()


def _nothing_learned(head: Head) -> Learned:
    zeros = torch.zeros(head.hidden_size, dtype=torch.float32, device=head.weight.device)
    return Learned(zeros, zeros[:0], torch.ones((), dtype=torch.bool, device=zeros.device))
