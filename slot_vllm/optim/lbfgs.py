"""L-BFGS for a group of prompts: fewer passes over W than AdamW for the same loss of the prompt.

A step takes two passes over W, the gradient's and that of its direction, whose W direction then is
all that losses, curvature and the next step's logits need: W delta is never computed. Along the
direction the step has Newton's length, by the curvature of the loss, but no more than ``lr`` per
coordinate (root mean square), which is what AdamW's steps have; or a shorter length, if the loss
is less there. AdamW's loss after 5 steps of lr 0.1, which take 9 passes over W, was reached in 1 or
2 steps of lr 1, on random problems and on the demo model's prompts.

Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4, with (7.20) to begin with; the
damped length log(1 + R a) / R, of a length a and logits that move apart by at most R a, never
leads uphill where nothing caps the logits (the loss is then self-concordant: Bach, Self-concordant
analysis for logistic regression).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.scaled_rows import Logits, ScaledRows, summed_losses, summed_variance
from slot_vllm.optim.shard import Shard, widest
from slot_vllm.optim.workspace import Workspace, aligned

MEMORY = 10

# What is tried of a step's length; a step of length zero, too.
_LENGTHS = 3


class Lbfgs:
    """shifts: (B, V) float32, W delta of each request, in the workspace. shard: as of
    ``TwoPassForm``; the rest is then the same, to the bit, on all ranks."""

    def __init__(
        self,
        head: Head,
        prompts: Sequence[Prompt],
        workspace: Workspace,
        shard: Shard | None = None,
    ) -> None:
        self._head, self._prompts, self._shard = head, prompts, shard
        shape = (2, len(prompts))
        self.shifts, self._rays = workspace.take(
            (*shape, head.vocabulary), torch.float32, (*shape, widest(head, shard))
        )
        self.shifts.zero_()
        self._rows = ScaledRows(head, workspace, shard)
        # (step, change of the gradient, 1 / their product or 0), oldest first.
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self._step = self._gradient = torch.empty(0)
        self._scale = torch.ones(len(prompts), 1, device=head.weight.device)

    @staticmethod
    def vector_bytes(head: Head) -> int:
        """What one request needs."""
        return 2 * aligned(head.vocabulary * 4)

    def gathered(self, learning: int) -> list[tuple[int, ...]]:
        """The shapes of what a rank gives in a step of ``learning`` requests, in their order."""
        rows = sum(prompt.rows for prompt in self._prompts[:learning])
        return [(2, learning), (3, rows), (2, _LENGTHS, rows)]

    def step(
        self,
        form: Logits,
        deltas: Tensor,
        gradient: Tensor,
        losses: Tensor,
        rates: Tensor,
        reductions: Tensor,
    ) -> None:
        """The first b requests take a step. deltas, gradient: (b, d) float32. losses: (b,) float64,
        summed, where they stand. rates, reductions: (b, 1), of the step and of the gradient.
        Nothing waits for the device."""
        b, size = gradient.shape
        direction = self._direction(gradient)
        slope = (gradient * direction).sum(1, keepdim=True)
        rays = self._rays[:b]
        self._head.exact_shift(direction, out=rays)
        spread = self._spread(rays)
        variances = [
            self._rows.variances(form, i, self._prompts[i], self.shifts[i], rays[i])
            for i in range(b)
        ]
        curvature = reductions * torch.stack(
            [summed_variance(one) for one in self._rows.over_ranks(variances)]
        ).unsqueeze(1)
        tiny = torch.finfo(torch.float32).tiny
        longest = rates * math.sqrt(size) / direction.norm(dim=1, keepdim=True).clamp(min=tiny)
        newton = torch.minimum(-slope / curvature.clamp(min=tiny), longest)
        damped = torch.log1p(spread * newton) / spread
        lengths = torch.cat((torch.zeros_like(newton), newton, damped, newton / 8), dim=1)
        terms = [
            self._rows.losses(
                form, i, self._prompts[i], rays[i], list(lengths[i, 1:]), self.shifts[i]
            )
            for i in range(b)
        ]
        tried = torch.stack([summed_losses(one) for one in self._rows.over_ranks(terms)])
        tried = torch.cat((losses.unsqueeze(1), tried), dim=1).nan_to_num(nan=torch.inf)
        length = lengths.gather(1, tried.argmin(dim=1, keepdim=True))
        self._step, self._gradient = length * direction, gradient
        deltas += self._step
        self.shifts[:b].addcmul_(rays, length)

    def _spread(self, rays: Tensor) -> Tensor:
        """(b, 1): by how much rays (b, V) move logits apart, before a soft cap, per length."""
        ends = rays.new_full((2, len(rays)), -torch.inf)
        if self._head.vocabulary:  # a rank may have no columns
            low, high = torch.aminmax(rays, dim=1)
            ends = torch.stack((-low, high))
        if self._shard is not None:
            ends = self._shard.gather(ends).amax(dim=0)
        spread = abs(self._head.scale) * ends.sum(dim=0).unsqueeze(1)
        return spread.clamp(min=torch.finfo(torch.float32).tiny)

    def _direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian's estimate times the gradient (b, d)."""
        b = len(gradient)
        if len(self._gradient):
            step, change = self._step[:b], gradient - self._gradient[:b]
            product = (step * change).sum(1, keepdim=True)
            bends = product > 1e-8 * step.norm(dim=1, keepdim=True) * change.norm(
                dim=1, keepdim=True
            )
            # Where the loss does not bend, the pair counts for nothing.
            inverse = torch.where(bends, 1 / product, 0.0)
            self._pairs = [*self._pairs[1 - MEMORY :], (step, change, inverse)]
            ratio = product / (change * change).sum(1, keepdim=True)
            self._scale = torch.where(bends, ratio, self._scale[:b])
        direction = gradient.clone()
        weights = []
        for step, change, inverse in reversed(self._pairs):
            weight = inverse[:b] * (step[:b] * direction).sum(1, keepdim=True)
            direction -= weight * change[:b]
            weights.append(weight)
        direction *= self._scale[:b]
        for (step, change, inverse), weight in zip(self._pairs, reversed(weights), strict=True):
            other = inverse[:b] * (change[:b] * direction).sum(1, keepdim=True)
            direction += (weight - other) * step[:b]
        return direction.neg_()
