"""The largest scale of a delta that keeps a divergence within its bound (``slot_max_kl``)."""

from collections.abc import Callable

import torch
from torch import Tensor

# A smaller bound is less than float32 logits resolve: nothing is left of delta.
LEAST_BOUND = 1e-9

# How far below its bound, relative to it, a divergence may stay; a delta that is within its bound
# is not touched.
_TOLERANCE = 5e-3
# Each is a pass over the prompt's logits. Three to nine were needed on the demo model.
EVALUATIONS = 16


def largest_scales(
    divergence: Callable[[Tensor, list[bool]], Tensor],
    largest: Tensor,
    bounds: Tensor,
    ends_early: bool,
) -> Tensor:
    """(B,) float32: for each request a scale from 0 to ``largest`` (B,) whose divergence is at most
    its bound (B,), and, unless ``largest`` itself keeps it or 16 evaluations do not find it, at
    least 0.995 of it.

    divergence: gives (B,) at scales (B,), 0 at 0; the list says for which requests it is needed,
    and what it gives for others does not count. What is not finite exceeds every bound.
    ends_early: as soon as all are found, which waits for the device; else it takes 16 evaluations
    for all requests.

    False position on the root of the divergence, which is nearly linear, by the Illinois rule. The
    scale returned is one whose divergence was seen to be within the bound.
    """
    bounds = torch.where(bounds < LEAST_BOUND, 0.0, bounds)
    # A little inside, so that what is found from below is found soon.
    goals = ((1.0 - _TOLERANCE / 2) * bounds).sqrt()
    low, high = torch.zeros_like(largest), largest.clone()
    low_gap, high_gap = -goals, torch.zeros_like(goals)
    last = torch.zeros_like(largest)
    # Without a delta, or room for one, there is nothing to find.
    found = (largest == 0) | (bounds == 0)
    scales = largest
    for i in range(EVALUATIONS):
        if ends_early and found.all():
            break
        needed = (~found).tolist() if ends_early else [True] * len(largest)
        kl = divergence(scales, needed).nan_to_num(nan=torch.inf).clamp(min=0.0, max=1e6)
        within, gap = kl <= bounds, kl.sqrt() - goals
        good = within & ((kl >= (1.0 - _TOLERANCE) * bounds) | (scales == largest))
        raises, lowers = ~found & within, ~found & ~within
        low, high = torch.where(raises, scales, low), torch.where(lowers, scales, high)
        # The end that stayed twice is trusted by half.
        high_gap = torch.where(raises & (last > 0), high_gap / 2, high_gap)
        low_gap = torch.where(lowers & (last < 0), low_gap / 2, low_gap)
        low_gap = torch.where(raises, gap, low_gap)
        high_gap = torch.where(lowers, gap, high_gap)
        last = raises.float() - lowers.float()
        found = found | good
        between = (low * high_gap - high * low_gap) / (high_gap - low_gap)
        middle = (low + high) / 2
        # Every third time the middle, whatever the curve looks like.
        usable = (between > low) & (between < high)
        scales = torch.where(usable & (i % 3 != 2), between, middle)
    return low
