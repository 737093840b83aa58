"""What is left of W delta at each generated token: ``slot_window`` and ``slot_half_life``."""

import torch
from torch import Tensor

from slot_vllm.params import SlotParams

WHOLE = (torch.inf, torch.inf)


def limits(params: SlotParams) -> tuple[float, float]:
    """The window and the half-life, in tokens; infinite where there is none."""
    return params.window or torch.inf, params.half_life or torch.inf


def factors(t: Tensor, windows: Tensor, half_lives: Tensor) -> Tensor:
    """(r,) float32, what W delta is multiplied by where the t-th token is chosen, counted from 0;
    before the first, where no token is chosen, 1. t, windows, half_lives: (r,) float64."""
    t = t.clamp(min=0)
    return torch.where(t < windows, torch.exp2(-t / half_lives), 0.0).float()
