"""What scaling a shift of the logits does to rows of a prompt: their losses, their divergences.

The rows are a form's, Z0 as it has them; a shift is W delta. Each statistic is first that of the
head's own columns, from which ``over_ranks`` and the functions at the end make that of the whole
vocabulary; for divergences that is the chain rule of KL.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.rows import Segment
from slot_vllm.optim.shard import Shard, widest
from slot_vllm.optim.workspace import Workspace, aligned

# Tiles that stay in a CPU's cache, and tiles that keep a GPU busy.
_CPU_ROWS, _GPU_ROWS = 8, 64
_PLANES = 3


class Logits(Protocol):
    """A form: rows of Z0 of a request; valid until the next ones."""

    def logits(self, request: int) -> Iterator[Segment]: ...


class ScaledRows:
    """All of size V is in the workspace: three float32 tiles. shard: as of ``TwoPassForm``."""

    def __init__(self, head: Head, workspace: Workspace, shard: Shard | None = None) -> None:
        self._head, self._shard = head, shard
        columns = widest(head, shard)
        rows = _CPU_ROWS if head.weight.device.type == "cpu" else _GPU_ROWS
        room = workspace.free // 8 // (_PLANES * columns * 4)
        rows = max(1, min(rows, room))
        self._planes = workspace.take(
            (_PLANES, rows, head.vocabulary), torch.float32, (_PLANES, rows, columns)
        )

    @staticmethod
    def smallest_bytes(head: Head) -> int:
        return aligned(_PLANES * head.vocabulary * 4)

    def losses(
        self,
        form: Logits,
        request: int,
        part: Prompt,
        shift: Tensor,
        scales: Sequence[float],
    ) -> Tensor:
        """(2, len(scales), r) float32: log-sum-exp and target logit, -inf if it is another rank's,
        of each row of the part at each scale times ``shift`` (V,) float32. request: what the form
        knows the part as."""
        out = shift.new_full((2, len(scales), part.rows), -torch.inf)
        targets = part.tokens[1:] - (0 if self._shard is None else self._shard.first_token)
        for start, z in self._tiles(form, request):
            rows = slice(start, start + len(z))
            here = (targets[rows] >= 0) & (targets[rows] < z.shape[1])
            columns = targets[rows].clamp(0, z.shape[1] - 1).unsqueeze(1)
            for k, scale in enumerate(scales):
                y = self._planes[0, : len(z)].copy_(z)
                if scale:
                    y.add_(shift, alpha=scale)
                self._activate(y)
                out[1, k, rows] = torch.where(here, y.gather(1, columns).squeeze(1), -torch.inf)
                out[0, k, rows] = _log_sum_exp(y)
        return out

    def divergences(
        self, form: Logits, request: int, part: Prompt, shift: Tensor, scale: Tensor
    ) -> Tensor:
        """(3, r) float32, nats, of the head's columns: for each row of the part that the form knows
        as ``request``, the log-sum-exp without ``scale`` () times ``shift`` (V,) float32, how much
        more it is with it, and KL of the next-token distribution with the shift from the one
        without."""
        out = shift.new_zeros(3, part.rows)
        out[0] = -torch.inf
        for start, z in self._tiles(form, request):
            rows = slice(start, start + len(z))
            log_p, log_q, ratio = (plane[: len(z)] for plane in self._planes)
            self._activate(log_p.copy_(z))
            self._activate(log_q.copy_(z).addcmul_(shift, scale))
            own, adapted = _log_sum_exp(log_p, ratio), _log_sum_exp(log_q, ratio)
            log_p -= own.float().unsqueeze(1)
            log_q -= adapted.float().unsqueeze(1)
            torch.sub(log_q, log_p, out=ratio)
            near = ratio < 1.0
            q, p = log_q.exp_(), log_p.exp_()
            # Where q is far above p, e^r is not what p can be multiplied by.
            q.mul_(ratio - 1.0).add_(p)
            ratio.clamp_(max=1.0)
            p.mul_(torch.expm1(ratio).mul_(ratio - 1.0).add_(ratio))
            out[0, rows], out[1, rows] = own, adapted - own
            out[2, rows] = torch.where(near, p, q).sum(dim=1)
        return out

    def over_ranks(self, own: Sequence[Tensor]) -> Sequence[Tensor]:
        """(ranks, ..., r) of each request, from this rank's (..., r): one gather for all."""
        if self._shard is None:
            return [one.unsqueeze(0) for one in own]
        gathered = self._shard.gather(torch.cat(list(own), dim=-1))
        return gathered.split([one.shape[-1] for one in own], dim=-1)

    def _tiles(self, form: Logits, request: int) -> Iterator[tuple[int, Tensor]]:
        """None for a rank without columns."""
        for segment in form.logits(request) if self._head.vocabulary else ():
            start = segment.start
            for tile in segment.logits.split(self._planes.shape[1]):
                yield start, tile
                start += len(tile)

    def _activate(self, y: Tensor) -> None:
        """f, in place."""
        if self._head.soft_cap is not None:
            y.div_(self._head.soft_cap).tanh_().mul_(self._head.soft_cap)
        if self._head.scale != 1.0:
            y.mul_(self._head.scale)


def _log_sum_exp(y: Tensor, scratch: Tensor | None = None) -> Tensor:
    """(r,) float64 of y (r, V), which is overwritten unless there is a scratch of its shape."""
    maxima = y.amax(dim=1)
    out = y if scratch is None else scratch
    sums = torch.sub(y, maxima.unsqueeze(1), out=out).exp_().sum(dim=1)
    return sums.double().log_().add_(maxima)


def summed_losses(terms: Tensor) -> Tensor:
    """(k,) float64, summed over the rows, from (ranks, 2, k, r) of ``losses``."""
    lse, target_logits = terms[:, 0].logsumexp(dim=0), terms[:, 1].amax(dim=0)
    return (lse - target_logits).sum(dim=1, dtype=torch.float64)


def row_divergences(terms: Tensor) -> Tensor:
    """(r,) float32, from (ranks, 3, r) of ``divergences``.

    With p the distribution without, q the one with the shift and r = log q - log p, KL(q || p) is
    the sum of p (r e^r - e^r + 1), over the columns within a rank and over the ranks' shares here.
    Its terms are not negative, and an error of r's constant, a difference of log-sum-exps, counts
    by its square: a small divergence keeps its digits.
    """
    if len(terms) == 1:
        return terms[0, 2]
    lse, changes, within = terms.double().unbind(dim=1)
    log_p = lse.log_softmax(dim=0)
    r = changes - (log_p + changes).logsumexp(dim=0)
    p, q = log_p.exp(), (log_p + r).exp()
    near = r.clamp(max=1.0)
    between = torch.where(r < 1.0, p * (near + (near - 1.0) * near.expm1()), q * (r - 1.0) + p)
    return (between + q * within).sum(dim=0).float()
