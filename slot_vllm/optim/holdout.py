"""Held-out acceptance (``slot_guard: holdout``): which rows are held out, and what they choose.

Rows are held out in blocks spread over the whole prompt. Single rows between learned ones would
hardly tell anything: with both neighbours learned from, a phrase that comes twice or a word of
several tokens is known already. The prompt's last part alone would tell about that part only, which
in a chat prompt is the template's own ending.
"""

import numpy as np
import torch
from torch import Tensor

# What delta may be multiplied by; the least of those that are equally good is taken.
SCALES = (0.0, 0.125, 0.25, 0.5, 1.0)

# Every fourth block is held out, each of so many rows where there are enough.
_PERIOD = 4
_BLOCK = 8

# Fewer rows cannot tell: then nothing is learned.
FEWEST_ROWS = 8


def held_out(rows: int) -> np.ndarray:
    """(rows,) bool, which of a prompt's rows are held out: a quarter of them, in blocks of up to 8
    rows, of less in prompts of less than 64 rows. Fewer than ``FEWEST_ROWS`` are all held out."""
    if rows < FEWEST_ROWS:
        return np.ones(rows, dtype=bool)
    block = min(_BLOCK, rows // (2 * _PERIOD))
    # The third of four: neither the first rows, which see no context, nor the template's last.
    return np.arange(rows) // block % _PERIOD == 2


def choose(losses: Tensor) -> Tensor:
    """The scale with the least loss. losses: (B, len(SCALES)); gives (B,) float32 on its device.
    A loss that is not finite is never the least; if none is finite the scale is 0."""
    scales = torch.tensor(SCALES, dtype=torch.float32, device=losses.device)
    return scales[losses.nan_to_num(nan=torch.inf).argmin(dim=1)]
