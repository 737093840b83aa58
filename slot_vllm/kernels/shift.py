"""W delta for a batch of deltas: what each request adds to its logits.

Floor: W is read once, V d itemsize bytes, and 2 B V d operations, which take over from four deltas
on. In bf16 at d 1536, V 151936 (467 MB) two cores read W in 8.1 ms. Compiled it takes 9.0 ms for
one delta, 18 for four, 36 for eight; in torch 25 to 35 for one (torch's own mv: 30 to 55).
"""

import torch
from torch import Tensor

from slot_vllm.kernels.compiled import library_for, strided
from slot_vllm.kernels.float32_tiles import float32_tiles


def shift(weight: Tensor, deltas: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
    """out = deltas weight^T. On a CPU with float32 products and sums whatever the weight's dtype.

    weight: (V, d), rows contiguous. deltas: (B, d) float32. out: (B, V) float32, rows contiguous.
    scratch: (B, V) in the weight's dtype, for what other devices round; allocated where missing.
    """
    assert out.shape == (deltas.shape[0], weight.shape[0])
    if weight.device.type != "cpu":
        if weight.dtype == torch.float32:
            torch.mm(deltas, weight.T, out=out)
        else:
            out.copy_(torch.mm(deltas.to(weight.dtype), weight.T, out=scratch))
        return
    library = library_for(weight)
    if library is None or out.stride(1) != 1:
        shift_torch(weight, deltas, out)
        return
    deltas = deltas.contiguous()
    threads = torch.get_num_threads()
    library.slot_shift(*strided(weight), deltas, len(deltas), out, out.stride(0), threads)


def shift_torch(weight: Tensor, deltas: Tensor, out: Tensor) -> None:
    """The same in torch: W widened to float32 a cacheful at a time."""
    for start, stop, rows in float32_tiles(weight):
        if len(deltas) == 1:
            torch.mv(rows, deltas[0], out=out[0, start:stop])
        else:
            out[:, start:stop] = deltas @ rows.T
