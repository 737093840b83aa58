"""How far a delta moves the next-token distribution at the prompt's last position."""

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.workspace import Workspace

# Of a tile, each for three float32 vectors over the vocabulary.
_REQUESTS = 8


def last_kl(
    head: Head, hidden: Tensor, deltas: Tensor, workspace: Workspace, shard: Shard | None = None
) -> Tensor:
    """(B,) float32, nats: KL(adapted || own) of the next-token distribution at hidden states
    ``hidden`` (B, d) with ``deltas`` (B, d) float32. Empties the workspace, of which three float32
    vectors over the vocabulary are enough. shard: as of ``optimize``; the ranks gather once."""
    workspace.reset()
    columns = head.vocabulary if shard is None else shard.widest
    step = max(1, min(_REQUESTS, len(deltas), workspace.free // (3 * 4 * columns)))
    # As large on each rank.
    room = workspace.take((3 * step * columns,), torch.float32)
    tile = room[: 3 * step * head.vocabulary].view(3 * step, head.vocabulary)
    parts = zip(hidden.split(step), deltas.split(step), strict=True)
    terms = torch.cat([_of_columns(head, h, delta, tile) for h, delta in parts], dim=1)
    return terms[2] if shard is None else _of_vocabulary(shard.gather(terms))


def _of_columns(head: Head, hidden: Tensor, deltas: Tensor, tile: Tensor) -> Tensor:
    """(3, k) float32 of the head's columns: log-sum-exp of the own logits, how much more it is with
    delta, and KL(adapted || own). tile: (3 k or more, V) float32."""
    count = len(deltas)
    terms = torch.zeros(3, count, dtype=torch.float32, device=deltas.device)
    if not head.vocabulary:
        terms[0] = -torch.inf
        return terms
    log_p, log_q, ratio = tile[: 3 * count].split(count)
    # W is read once for both.
    head.exact_shift(torch.cat([hidden.float(), deltas]), out=tile[: 2 * count])
    if head.bias is not None:
        log_p += head.bias
    log_q += log_p
    for z in (log_p, log_q):
        if head.soft_cap is not None:
            z.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
        z *= head.scale
    own, adapted = _log_sum_exp(log_p, ratio), _log_sum_exp(log_q, ratio)
    log_p -= own.float().unsqueeze(1)
    log_q -= adapted.float().unsqueeze(1)
    torch.sub(log_q, log_p, out=ratio)
    terms[0], terms[1] = own, adapted - own
    terms[2] = _divergence(log_p.exp_(), log_q.exp_(), ratio).sum(dim=1)
    return terms


def _of_vocabulary(terms: Tensor) -> Tensor:
    """(k,) float32, from (ranks, 3, k) of ``_of_columns``, by the chain rule of KL: that between
    the ranks' shares, and those within the ranks."""
    lse, changes, within = terms.double().unbind(dim=1)
    log_p = lse.log_softmax(dim=0)
    r = changes - (log_p + changes).logsumexp(dim=0)
    p, q = log_p.exp(), (log_p + r).exp()
    return (_divergence(p, q, r) + q * within).sum(dim=0).float()


def _divergence(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """p (r e^r - e^r + 1), whose sum is KL(q || p) for q = p e^r. No term is negative, and an error
    of r's constant, a difference of log-sum-exps, counts by its square: a small divergence keeps
    its digits. Where q is far above p, e^r is not what p can be multiplied by."""
    near = r.clamp(max=1.0)
    return torch.where(r < 1.0, p * (near + (near - 1.0) * near.expm1()), q * (r - 1.0) + p)


def _log_sum_exp(y: Tensor, scratch: Tensor) -> Tensor:
    """(r,) float64 of y (r, V). scratch: of its shape."""
    maxima = y.amax(dim=1)
    sums = torch.sub(y, maxima.unsqueeze(1), out=scratch).exp_().sum(dim=1)
    return sums.double().log_().add_(maxima)
