"""The losses of each request's rows, summed, on CUDA.

Floor: 8 bytes per row, nothing beside one launch. One program per request adds its rows in a fixed
order, in float64.
"""

import triton
import triton.language as tl
from torch import Tensor

from slot_vllm.kernels.ragged import RowPart

_BLOCK_ROWS = 1024


def add_request_losses(lse: Tensor, target_logits: Tensor, part: RowPart, losses: Tensor) -> None:
    """See ``slot_vllm.kernels.request_losses.add_request_losses``."""
    requests = part.request_range
    if requests:
        _add_request_losses[(len(requests),)](
            lse,
            target_logits,
            part.batch.offsets,
            losses,
            requests.start,
            part.first,
            len(part),
            losses.stride(0),
            BLOCK_ROWS=_BLOCK_ROWS,
            num_warps=4,
        )


@triton.jit(do_not_specialize=["first_request", "first", "rows", "losses_stride"])
def _add_request_losses(
    lse,
    target_logits,
    offsets,
    losses,
    first_request,
    first,
    rows,
    losses_stride,
    BLOCK_ROWS: tl.constexpr,
):
    request = first_request + tl.program_id(0)
    start = tl.maximum(tl.load(offsets + request) - first, 0)
    stop = tl.minimum(tl.load(offsets + request + 1) - first, rows)
    accumulator = tl.zeros([BLOCK_ROWS], tl.float64)
    for tile in range(start, stop, BLOCK_ROWS):
        row = tile + tl.arange(0, BLOCK_ROWS)
        here = row < stop
        loss = tl.load(lse + row, mask=here, other=0.0)
        loss -= tl.load(target_logits + row, mask=here, other=0.0)
        accumulator += loss.to(tl.float64)
    pointer = losses + request * losses_stride
    tl.store(pointer, tl.load(pointer) + tl.sum(accumulator))
