"""Add each request's W delta to its rows of logits, on CUDA: one launch, no wait for the device.

Floor, for k of r rows that have a delta: 12 k V bytes (logits read and written, W delta read, less
where requests' rows share one). Programs of rows without one end after reading their index: those
rows are neither read nor written.
"""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


def add_bias_rows(
    logits: Tensor, table: Tensor, rows: Tensor, factors: Tensor | None = None
) -> None:
    """See ``slot_vllm.kernels.apply_delta.add_bias_rows``."""
    count, vocabulary = logits.shape
    assert logits.stride(1) == table.stride(1) == 1 and rows.is_contiguous()
    assert factors is None or factors.is_contiguous()
    if count and vocabulary:
        _add_bias_rows[(count, -(-vocabulary // _BLOCK))](
            logits,
            table,
            rows,
            factors,
            vocabulary,
            logits.stride(0),
            table.stride(0),
            BLOCK=_BLOCK,
            num_warps=4,
        )


@triton.jit
def _add_bias_rows(
    logits, table, rows, factors, vocabulary, logits_stride, table_stride, BLOCK: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    if row != 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < vocabulary
        pointers = logits + index * logits_stride + column
        z = tl.load(pointers, mask=mask, other=0.0)
        added = tl.load(table + row * table_stride + column, mask=mask, other=0.0)
        if factors is not None:
            added *= tl.load(factors + index)
        z += added
        tl.store(pointers, z, mask=mask)
