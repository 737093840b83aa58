"""The losses of each request's rows, summed."""

import torch
from torch import Tensor

from slot_vllm.kernels.backend import Kernel
from slot_vllm.kernels.ragged import RowPart


@Kernel
def add_request_losses(lse: Tensor, target_logits: Tensor, part: RowPart, losses: Tensor) -> None:
    """losses[r] += sum over r's rows in ``part`` of lse - target_logits, in place.

    lse, target_logits: (r,) float32. losses: (B,) float64, of any stride.
    """
    row_losses = lse - target_logits
    for request, start, stop in part.spans():
        losses[request] += row_losses[start:stop].sum(dtype=torch.float64)
