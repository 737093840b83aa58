"""Column sums of the softmax's gradient, on CUDA: the second pass over Z.

A program owns a block of columns of one request and walks the request's rows in order, with one
accumulator per element of its tile, folded once at the end. So each sum is made by one program in
one fixed order: deterministic, without atomics or partial sums to add up. The vocabulary is wide
enough to fill the device even for one request (152064 columns are 594 programs), and a request's
sums do not depend on its neighbours.

Floor, for r rows of V logits of s bytes (2 in bf16), B requests: r V s bytes read, 8 B V of sums
read and written, 4 B V of shifts; r V exponentials and about 8 r V further float32 operations.
Bound by memory like the first pass. Both passes together read Z twice; once would do only if a row
(300 KB at V = 152064) stayed on one multiprocessor between them. Up to about 128 such rows the
second reading comes from the second level cache.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.ragged import RowPart
from slot_vllm.kernels.triton.activation import activated_with_slope
from slot_vllm.kernels.triton.processors import processors_of


@dataclass(frozen=True)
class SumBlocks:
    """rows x columns: a program's tile, powers of two. stages: tiles on their way at once."""

    rows: int
    columns: int
    warps: int
    stages: int


def sum_blocks(vocabulary: int, longest: int, requests: int, processors: int) -> SumBlocks:
    """Columns as wide as leaves four programs for each multiprocessor. longest: rows of the longest
    request."""
    columns = 256
    while columns > 64 and requests * -(-vocabulary // columns) < 4 * processors:
        columns //= 2
    return SumBlocks(16 if longest > 4 else 4, columns, 4, 4)


def add_column_sums(
    logits: Tensor,
    shifts: Tensor | None,
    lse: Tensor,
    part: RowPart,
    f: Activation,
    sums: Tensor,
    first_token: int = 0,
    blocks: SumBlocks | None = None,
) -> None:
    """See ``slot_vllm.kernels.column_sums.add_column_sums``."""
    rows, vocabulary = logits.shape
    assert logits.stride(1) == sums.stride(1) == 1 and len(part) == rows
    requests = part.request_range
    if not rows or not vocabulary:
        return
    if blocks is None:
        longest = max(stop - start for _, start, stop in part.spans())
        processors = processors_of(logits.device)
        blocks = sum_blocks(vocabulary, longest, len(requests), processors)
    _add_column_sums[(-(-vocabulary // blocks.columns), len(requests))](
        logits,
        shifts,
        lse,
        part.batch.offsets,
        part.targets,
        sums,
        requests.start,
        part.first,
        rows,
        vocabulary,
        first_token,
        logits.stride(0),
        0 if shifts is None else shifts.stride(0),
        sums.stride(0),
        f.soft_cap,
        f.scale,
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        STAGES=blocks.stages,
        num_warps=blocks.warps,
    )


@triton.jit(do_not_specialize=["first_request", "first", "rows", "first_token"])
def _add_column_sums(
    logits,
    shifts,
    lse,
    offsets,
    targets,
    sums,
    first_request,
    first,
    rows,
    vocabulary,
    first_token,
    logits_stride,
    shifts_stride,
    sums_stride,
    soft_cap,
    scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    request = first_request + tl.program_id(1)
    start = tl.maximum(tl.load(offsets + request) - first, 0)
    stop = tl.minimum(tl.load(offsets + request + 1) - first, rows)
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < vocabulary
    if shifts is not None:
        shift_row = shifts + request.to(tl.int64) * shifts_stride
        shift = tl.load(shift_row + column, mask=inside, other=0.0)

    accumulator = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for tile in tl.range(start, stop, BLOCK_ROWS, num_stages=STAGES):
        row = tile + tl.arange(0, BLOCK_ROWS)
        here = row < stop
        pointers = logits + row.to(tl.int64)[:, None] * logits_stride + column[None, :]
        z = tl.load(pointers, mask=here[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if shifts is not None:
            z += shift[None, :]
        # Beyond the end: a log-sum-exp of +inf makes the softmax zero.
        row_lse = tl.load(lse + row, mask=here, other=float("inf"))
        target = (tl.load(targets + row, mask=here, other=-1) - first_token).to(tl.int32)
        y, slope = activated_with_slope(z, soft_cap, scale)
        p = tl.exp(y - row_lse[:, None])
        p -= tl.where(column[None, :] == target[:, None], 1.0, 0.0)
        accumulator += p * slope
    total = tl.sum(accumulator, axis=0)
    pointers = sums + request.to(tl.int64) * sums_stride + column
    tl.store(pointers, tl.load(pointers, mask=inside, other=0.0) + total, mask=inside)
