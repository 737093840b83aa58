"""The losses of each request's rows, summed."""

import torch
from torch import Tensor

from slot_vllm.kernels import backend
from slot_vllm.kernels.ragged import RowPart


def add_request_losses(lse: Tensor, target_logits: Tensor, part: RowPart, losses: Tensor) -> None:
    """losses[r] += sum over r's rows in ``part`` of lse - target_logits, in place.

    lse, target_logits: (r,) float32. losses: (B,) float64, of any stride.
    """
    if backend.uses_triton(lse):
        from slot_vllm.kernels.triton.request_losses import add_request_losses as on_device

        on_device(lse, target_logits, part, losses)
    else:
        torch_add_request_losses(lse, target_logits, part, losses)


def torch_add_request_losses(
    lse: Tensor, target_logits: Tensor, part: RowPart, losses: Tensor
) -> None:
    row_losses = lse - target_logits
    for request, start, stop in part.spans():
        losses[request] += row_losses[start:stop].sum(dtype=torch.float64)
