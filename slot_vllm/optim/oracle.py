"""SLOT by autograd, step by step as the paper writes it: what the fast form is compared with.

Every option of ``SlotParams`` is here once more, written without regard to cost.
"""

import itertools
import math
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
    logit_bias = torch.zeros(head.vocabulary, dtype=dtype, device=weight.device)
    fit, held = _rows(prompt) if prompt.rows and params.steps else ([], [])
    biased = None if params.target == "hidden" else logit_bias
    if not fit:
        applied = torch.tensor(0.0 if held else 1.0)
        return Learned(delta, delta[:0], torch.tensor(True), applied, biased)
    learned = {"hidden": [delta], "bias": [logit_bias], "both": [delta, logit_bias]}[params.target]
    for parameter in learned:
        parameter.requires_grad_()
    optimizer: torch.optim.Optimizer
    if params.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            learned, params.lr, betas=params.betas, eps=params.eps, weight_decay=params.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(learned, params.lr)

    def logits(scale: float = 1.0) -> Tensor:
        """(n, V), of all rows."""
        z = F.linear(hidden + scale * delta, weight, bias)
        return head.activate(z if biased is None else z + scale * logit_bias)

    def loss(rows: list[int], scale: float = 1.0) -> Tensor:
        if rows == list(range(prompt.rows)):
            return F.cross_entropy(logits(scale)[:-1], prompt.tokens[1:])
        return F.cross_entropy(logits(scale)[rows], prompt.tokens[[row + 1 for row in rows]])

    losses: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    with torch.enable_grad():
        for t in range(params.steps):
            optimizer.zero_grad()
            value = loss(fit)
            losses.append(value.detach())
            if params.tolerance and t and losses[-2] - losses[-1] < params.tolerance:
                losses += [losses[-1]] * (params.steps - len(losses))
                break
            # How far L-BFGS goes does not depend on the gradient's scale.
            whole = params.reduction == "mean" or params.optimizer == "lbfgs"
            (value / (1 if whole else len(fit))).backward()
            rate = params.lr
            if params.lr_schedule == "linear":
                rate *= (params.steps - t) / params.steps
            if params.lr_schedule == "cosine":
                rate *= math.cos(math.pi * t / params.steps / 2) ** 2
            if params.optimizer == "lbfgs":
                with torch.no_grad():
                    _lbfgs_step(head, delta, rate, lambda: logits()[fit], lambda: loss(fit), pairs)
                continue
            optimizer.param_groups[0]["lr"] = rate
            if params.optimizer == "sgd":
                for parameter in learned:
                    parameter.data *= 1 - rate * params.weight_decay
            optimizer.step()
    with torch.no_grad():
        scale = 1.0
        if params.guard == "holdout":
            scale = min((0.0, 0.125, 0.25, 0.5, 1.0), key=lambda s: (float(loss(held, s)), s))
        if params.max_kl is not None:
            scale = _within(logits, params.max_kl, scale)
        losses.append(loss(fit, scale))
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in learned]).all()
        return Learned(
            (scale * delta).detach(),
            torch.stack(losses),
            finite,
            torch.tensor(scale),
            None if biased is None else (scale * biased).detach(),
        )


def _lbfgs_step(
    head: Head,
    delta: Tensor,
    rate: float,
    logits: Callable[[], Tensor],
    loss: Callable[[], Tensor],
    points: list[tuple[Tensor, Tensor]],
) -> None:
    """By the whole inverse Hessian. points: delta and gradient of every step so far."""
    assert delta.grad is not None
    gradient, size = delta.grad.clone(), len(delta)
    points.append((delta.clone(), gradient))
    eye = torch.eye(size, dtype=delta.dtype)
    pairs = [(b - a, h - g) for (a, g), (b, h) in itertools.pairwise(points)]
    pairs = [(s, y) for s, y in pairs if s @ y > 1e-8 * s.norm() * y.norm()]
    inverse = (
        eye if not pairs else eye * (pairs[-1][0] @ pairs[-1][1]) / pairs[-1][1].square().sum()
    )
    for s, y in pairs[-10:]:
        left = eye - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    direction = -inverse @ gradient
    y, ray = logits(), head.weight.to(delta.dtype) @ direction
    moved = ray * head.scale
    if head.soft_cap is not None:
        # f' = scale (1 - (f / (scale soft_cap))^2)
        moved = moved * (1 - (y / (head.scale * head.soft_cap)) ** 2)
    p = torch.softmax(y, dim=1)
    variance = (p * moved**2).sum(dim=1) - (p * moved).sum(dim=1) ** 2
    newton = min(
        float(-(gradient @ direction) / variance.mean()),
        float(rate * size**0.5 / direction.norm()),
    )
    spread = abs(head.scale) * float(ray.max() - ray.min())
    origin = delta.clone()
    best, least = 0.0, float(loss())
    for length in (newton, math.log1p(spread * newton) / spread, newton / 8):
        delta.copy_(origin + length * direction)
        if float(loss()) < least:
            best, least = length, float(loss())
    delta.copy_(origin + best * direction)


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
