"""What scaling a shift of the logits does to rows of a prompt: their losses, their divergences.

The rows are a form's, Z0 as it has them; a shift is W delta and what else is added to the logits.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.rows import Segment
from slot_vllm.optim.workspace import Workspace, aligned

# Tiles that stay in a CPU's cache, and tiles that keep a GPU busy.
_CPU_ROWS, _GPU_ROWS = 8, 64
_PLANES = 3


class Logits(Protocol):
    """A form: rows of Z0 of a request, each row up to a constant; valid until the next ones."""

    def logits(self, request: int) -> Iterator[Segment]: ...


class ScaledRows:
    """All of size V is in the workspace: three float32 tiles."""

    def __init__(self, head: Head, workspace: Workspace) -> None:
        self._head = head
        rows = _CPU_ROWS if head.weight.device.type == "cpu" else _GPU_ROWS
        room = workspace.free // 8 // (_PLANES * head.vocabulary * 4)
        shape = (_PLANES, max(1, min(rows, room)), head.vocabulary)
        self._planes = workspace.take(shape, torch.float32)

    @staticmethod
    def smallest_bytes(head: Head) -> int:
        return aligned(_PLANES * head.vocabulary * 4)

    def losses(
        self,
        form: Logits,
        request: int,
        part: Prompt,
        shift: Tensor,
        scales: Sequence[float | Tensor],
        origin: Tensor | None = None,
    ) -> Tensor:
        """(len(scales),) float64: the part's summed losses at each scale, () if a tensor, times
        ``shift`` (V,) float32, from ``origin`` (V,) or zero. request: what the form knows the part
        as."""
        losses = torch.zeros(len(scales), dtype=torch.float64, device=shift.device)
        for start, z in self._tiles(form, request):
            targets = part.tokens[start + 1 : start + 1 + len(z)].unsqueeze(1)
            for k, scale in enumerate(scales):
                y = self._planes[0, : len(z)].copy_(z)
                if origin is not None:
                    y.add_(origin)
                if isinstance(scale, Tensor):
                    y.addcmul_(shift, scale)
                elif scale:
                    y.add_(shift, alpha=scale)
                self._activate(y)
                target_logits = y.gather(1, targets).squeeze(1)
                losses[k] += (_log_sum_exp(y) - target_logits).sum(dtype=torch.float64)
        return losses

    def divergences(self, form: Logits, request: int, shift: Tensor, scale: Tensor) -> Tensor:
        """(r,) float32, nats: for each row of the part that the form knows as ``request``, KL of
        the next-token distribution with ``scale`` () times ``shift`` (V,) from the one without.

        With p the distribution without, q the one with the shift and r = log q - log p, it is the
        sum of p (r e^r - e^r + 1). Its terms are not negative, and an error of r's constant, a
        difference of log-sum-exps, counts by its square: a small divergence keeps its digits.
        """
        rows = []
        for _, z in self._tiles(form, request):
            log_p, log_q, ratio = (plane[: len(z)] for plane in self._planes)
            self._activate(log_p.copy_(z))
            self._activate(log_q.copy_(z).addcmul_(shift, scale))
            log_p -= _log_sum_exp(log_p, ratio).unsqueeze(1)
            log_q -= _log_sum_exp(log_q, ratio).unsqueeze(1)
            torch.sub(log_q, log_p, out=ratio)
            near = ratio < 1.0
            q, p = log_q.exp_(), log_p.exp_()
            # Where q is far above p, e^r is not what p can be multiplied by.
            q.mul_(ratio - 1.0).add_(p)
            ratio.clamp_(max=1.0)
            p.mul_(torch.expm1(ratio).mul_(ratio - 1.0).add_(ratio))
            rows.append(torch.where(near, p, q).sum(dim=1))
        return torch.cat(rows)

    def curvature(self, form: Logits, request: int, origin: Tensor, shift: Tensor) -> Tensor:
        """() float32: the second derivative of a part's losses, summed, along ``shift`` at
        ``origin``, (V,) float32 each; with a soft cap without its own curvature (Gauss-Newton)."""
        total = torch.zeros((), device=shift.device)
        for _, z in self._tiles(form, request):
            p, moved, scratch = (plane[: len(z)] for plane in self._planes)
            p.copy_(z).add_(origin)
            moved.copy_(shift.expand_as(z))
            if self._head.soft_cap is not None:
                slope = torch.div(p, self._head.soft_cap, out=scratch).tanh_().square_().neg_()
                moved.mul_(slope.add_(1.0))
            moved.mul_(self._head.scale)
            self._activate(p)
            p.sub_(_log_sum_exp(p, scratch).unsqueeze(1)).exp_()
            mean = torch.mul(p, moved, out=scratch).sum(dim=1)
            total += p.mul_(moved.sub_(mean.unsqueeze(1)).square_()).sum()
        return total

    def _tiles(self, form: Logits, request: int) -> Iterator[tuple[int, Tensor]]:
        for segment in form.logits(request):
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
    """(r,) of y (r, V), which is overwritten unless there is a scratch of its shape."""
    maxima = y.amax(dim=1)
    out = y if scratch is None else scratch
    return torch.sub(y, maxima.unsqueeze(1), out=out).exp_().sum(dim=1).log_().add_(maxima)
