"""SLOT by autograd, step by step as the paper writes it: what the fast form is compared with.

Every option of ``SlotParams`` is here once more, written without regard to cost.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, Prompt
from slot_vllm.params import SlotParams

_TILE_BYTES = 256 << 20
_VOCABULARY_TILE = 4096


def oracle(head: Head, prompt: Prompt) -> Learned:
    """The exact answer: torch.optim.AdamW on autograd gradients, all in float64."""
    params = prompt.params
    hidden, weight = prompt.hidden.double(), head.weight.double()
    bias = None if head.bias is None else head.bias.double()
    delta = torch.zeros(head.hidden_size, dtype=torch.float64, device=weight.device)
    rows = _rows(prompt)
    if not rows or not params.steps:
        return Learned(delta, delta[:0], torch.tensor(True))
    delta.requires_grad_()
    optimizer = torchs_adamw(delta, params)

    def loss() -> Tensor:
        logits = head.activate(F.linear(hidden + delta, weight, bias))
        if len(rows) == prompt.rows:
            return F.cross_entropy(logits[:-1], prompt.tokens[1:])
        return F.cross_entropy(logits[rows], prompt.tokens[[row + 1 for row in rows]])

    losses: list[Tensor] = []
    with torch.enable_grad():
        for _ in range(params.steps):
            optimizer.zero_grad()
            value = loss()
            losses.append(value.detach())
            (value / (1 if params.reduction == "mean" else len(rows))).backward()
            optimizer.step()
    with torch.no_grad():
        losses.append(loss())
        last = (F.linear(h, weight, bias) for h in (hidden[-1], hidden[-1] + delta))
        own, adapted = (head.activate(z).log_softmax(dim=0) for z in last)
        return Learned(
            delta.detach(),
            torch.stack(losses),
            torch.isfinite(delta).all(),
            None,
            len(rows),
            (adapted.exp() * (adapted - own)).sum(),
        )


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
    optimizer = torchs_adamw(delta, params)
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


def torchs_adamw(delta: Tensor, params: SlotParams) -> torch.optim.AdamW:
    """What takes the steps, here and in what ours is compared with."""
    return torch.optim.AdamW(
        [delta], params.lr, betas=params.betas, eps=params.eps, weight_decay=params.weight_decay
    )


def _rows(prompt: Prompt) -> list[int]:
    """Those that are learned from; row i predicts token i + 1."""
    rows, wanted = list(range(prompt.rows)), prompt.params.loss_tokens
    if isinstance(wanted, int):
        rows = rows[-wanted:]
    if prompt.counts is None:
        assert prompt.params.words is None
        return rows
    return [row for row in rows if prompt.counts[row + 1]]
