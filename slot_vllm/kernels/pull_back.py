"""W^T s for a batch of column sums: the gradients with respect to the deltas.

Floor: as of ``shift``, 8.1 ms in its example. The compiled form takes 10.0 ms for one request, 11
for four, 22 for eight; the torch form 25 to 35 for one (torch's own bf16 product: 44 to 88).
"""

import torch
from torch import Tensor

from slot_vllm.kernels.compiled import library_for, strided
from slot_vllm.kernels.float32_tiles import float32_tiles


def pull_back(weight: Tensor, sums: Tensor) -> Tensor:
    """(B, d) float32: sums weight. On a CPU with float32 products whatever the weight's dtype.

    weight: (V, d), rows contiguous. sums: (B, V) float32, rows contiguous.
    """
    if weight.device.type != "cpu":
        return pull_back_rounded(weight, sums)
    library = library_for(weight)
    if library is None or sums.stride(1) != 1:
        return pull_back_torch(weight, sums)
    out = torch.empty(sums.shape[0], weight.shape[1], dtype=torch.float32)
    threads = torch.get_num_threads()
    library.slot_pull_back(*strided(weight), sums, sums.stride(0), len(sums), out, threads)
    return out


def pull_back_rounded(weight: Tensor, sums: Tensor, columns: int = 1 << 15) -> Tensor:
    """The same with the sums rounded to the weight's dtype, where products of that dtype are what a
    device is fast at. ``columns`` at a time: what is rounded stays small, and its parts are added
    up in float32."""
    out = torch.zeros(sums.shape[0], weight.shape[1], dtype=torch.float32, device=weight.device)
    for part, rows in zip(sums.split(columns, dim=1), weight.split(columns), strict=True):
        out += part.to(weight.dtype) @ rows
    return out


def pull_back_torch(weight: Tensor, sums: Tensor) -> Tensor:
    """The same in torch: W widened to float32 a cacheful at a time."""
    out = torch.zeros(sums.shape[0], weight.shape[1], dtype=torch.float32, device=weight.device)
    for start, stop, rows in float32_tiles(weight):
        if len(sums) == 1:
            out[0].addmv_(rows.T, sums[0, start:stop])
        else:
            out.addmm_(sums[:, start:stop], rows)
    return out
