"""From the host to the device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(
    values: Sequence[Any] | np.ndarray, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor on ``device``, without waiting for what runs there."""
    pinned = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
