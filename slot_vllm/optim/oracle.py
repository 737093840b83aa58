"""SLOT by autograd, step by step as the paper writes it: what the fast form is compared with.

Every option of ``SlotParams`` is here once more, written without regard to cost.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, Prompt

_TILE_BYTES = 256 << 20
_VOCABULARY_TILE = 4096


def oracle(head: Head, prompt: Prompt) -> Learned:
    """The exact answer: torch.optim.AdamW on autograd gradients, all in float64."""
    return _autograd(head, prompt, torch.float64)


def published(head: Head, prompt: Prompt) -> Learned:
    """The published per-prompt loop: the same in the model's dtype, delta included.

    h + delta is rounded to that dtype in every step, as it is by the published code, which takes
    2 T full products with W for T steps.
    """
    return _autograd(head, prompt, head.weight.dtype)


def tiled_oracle(head: Head, prompt: Prompt) -> Tensor:
    """The oracle's delta (d,) float64 where V is too large for autograd: rows in tiles of some
    hundred megabytes, W in float64 a few thousand rows at a time.

    The gradient of a row's loss with respect to its hidden state is W^T f'(z) (softmax(f(z)) - c);
    T steps take T products of the whole h + delta.
    """
    params, rows = prompt.params, prompt.rows
    hidden, targets = prompt.hidden[:-1].double(), prompt.tokens[1:]
    delta = torch.zeros(head.hidden_size, dtype=torch.float64, device=head.weight.device)
    if not rows or not params.steps:
        return delta
    optimizer = torch.optim.AdamW(
        [delta], params.lr, betas=params.betas, eps=params.eps, weight_decay=params.weight_decay
    )
    tile = max(1, _TILE_BYTES // (8 * head.vocabulary))
    parts = range(0, head.vocabulary, _VOCABULARY_TILE)
    weights = [head.weight[v : v + _VOCABULARY_TILE] for v in parts]
    for _ in range(params.steps):
        sums = torch.zeros(head.vocabulary, dtype=torch.float64, device=delta.device)
        for h, c in zip(hidden.split(tile), targets.split(tile), strict=True):
            z = torch.cat([(h + delta) @ w.double().T for w in weights], dim=1)
            if head.bias is not None:
                z += head.bias.double()
            slope = torch.full_like(z[:1], head.scale)
            if head.soft_cap is not None:
                slope = head.scale * (1 - torch.tanh(z / head.soft_cap) ** 2)
            wrong = torch.softmax(head.activate(z), dim=1)
            wrong[torch.arange(len(c), device=c.device), c] -= 1
            sums += (wrong * slope).sum(dim=0)
        split = sums.split(_VOCABULARY_TILE)
        delta.grad = torch.stack([s @ w.double() for s, w in zip(split, weights, strict=True)]).sum(
            dim=0
        )
        delta.grad /= rows
        optimizer.step()
    return delta


def _autograd(head: Head, prompt: Prompt, dtype: torch.dtype) -> Learned:
    params = prompt.params
    hidden, weight = prompt.hidden.to(dtype), head.weight.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    delta = torch.zeros(head.hidden_size, dtype=dtype, device=weight.device)
    fit, held = _rows(prompt) if prompt.rows and params.steps else ([], [])
    if not fit:
        return Learned(delta, delta[:0], torch.tensor(True), torch.tensor(0.0 if held else 1.0))
    delta.requires_grad_()
    optimizer = torch.optim.AdamW(
        [delta], params.lr, betas=params.betas, eps=params.eps, weight_decay=params.weight_decay
    )

    def logits(scale: float = 1.0) -> Tensor:
        """(n, V), of all rows."""
        return head.activate(F.linear(hidden + scale * delta, weight, bias))

    def loss(rows: list[int], scale: float = 1.0) -> Tensor:
        if rows == list(range(prompt.rows)):
            return F.cross_entropy(logits(scale)[:-1], prompt.tokens[1:])
        return F.cross_entropy(logits(scale)[rows], prompt.tokens[[row + 1 for row in rows]])

    losses: list[Tensor] = []
    with torch.enable_grad():
        for _ in range(params.steps):
            optimizer.zero_grad()
            value = loss(fit)
            losses.append(value.detach())
            (value / (1 if params.reduction == "mean" else len(fit))).backward()
            optimizer.step()
    with torch.no_grad():
        scale = 1.0
        if params.guard == "holdout":
            scale = min((0.0, 0.125, 0.25, 0.5, 1.0), key=lambda s: (float(loss(held, s)), s))
        chosen = scale
        if params.max_kl is not None:
            scale = _within(logits, params.max_kl, scale)
        losses.append(loss(fit, scale))
        last = [F.linear(hidden[-1] + s * delta, weight, bias) for s in (0.0, scale)]
        own, adapted = (head.activate(z).log_softmax(dim=0) for z in last)
        return Learned(
            (scale * delta).detach(),
            torch.stack(losses),
            torch.isfinite(delta).all(),
            torch.tensor(scale),
            None,
            len(fit),
            torch.stack([loss(held, s) for s in (0.0, chosen)]) if held else None,
            (adapted.exp() * (adapted - own)).sum(),
        )


def _rows(prompt: Prompt) -> tuple[list[int], list[int]]:
    """Those that are learned from, and those that are held out; row i predicts token i + 1."""
    rows, wanted = list(range(prompt.rows)), prompt.params.loss_tokens
    if isinstance(wanted, int):
        rows = rows[-wanted:]
    elif wanted != "all":
        assert prompt.counts is not None
        rows = [row for row in rows if prompt.counts[row + 1]]
    if prompt.params.guard == "none":
        return rows, []
    if len(rows) < 8:
        return [], rows
    block = min(8, len(rows) // 8)
    held = [row for k, row in enumerate(rows) if (k // block) % 4 == 2]
    return [row for row in rows if row not in held], held


def _within(logits: Callable[[float], Tensor], bound: float, scale: float) -> float:
    """The largest scale up to ``scale`` whose divergences are within ``bound``, by bisection."""
    own = torch.log_softmax(logits(0.0), dim=1)

    def divergence(scale: float) -> float:
        adapted = torch.log_softmax(logits(scale), dim=1)
        rows = (adapted.exp() * (adapted - own)).sum(dim=1)
        return max(float(rows.mean()), float(rows[-1]))

    if divergence(scale) <= bound:
        return scale
    low, high = 0.0, scale
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) <= bound else (low, middle)
    return low
