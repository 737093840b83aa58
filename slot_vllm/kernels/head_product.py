"""Z = H W^T + bias, and with it the softmax partials of each row of f(Z + shift)."""

import torch
from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.backend import Kernel
from slot_vllm.kernels.ragged import RowPart
from slot_vllm.kernels.row_statistics import row_partials


@Kernel
def head_product(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Tensor | None,
    part: RowPart,
    f: Activation,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write Z to ``out`` and return the partial maxima and totals of ``row_partials``.

    hidden: (r, d), the rows of ``part``. weight: (V, d), same dtype. bias: (V,) or None. shifts:
    (B, V) float32 or None. out: (r, V) in the weight's dtype, without the shift. The partials are
    those of the rounded logits in ``out``, so that logits that are kept and logits that are made
    again in every step lead to the same delta.
    """
    # torch would resize an ``out`` that does not fit.
    assert out.shape == (hidden.shape[0], weight.shape[0])
    if bias is None:
        torch.mm(hidden, weight.T, out=out)
    else:
        torch.addmm(bias.to(weight.dtype), hidden, weight.T, out=out)
    return row_partials.torch(out, shifts, part, f)
