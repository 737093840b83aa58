"""Log-sum-exp and target logit of each row, on CUDA.

``row_partials`` is the first of the two passes of a softmax over cached Z0: n x V logits are read
once, nothing of that size is written. Programs take tiles of rows of one request, so that its
shift is read once per tile, times ranges of columns: a single short prompt is spread over the
columns, many prompts or a long one over the rows.

Floor, for r rows of V logits of s bytes (2 in bf16): r V s bytes read; r V exponentials and about
5 r V further float32 operations. At 2 bytes and 4.8 TB/s an H200 reads 2.4e12 logits per second,
and its special function units do 3.6e12 exponentials: bound by memory.
Beyond the floor: 4 V bytes of shift per tile, from the second level cache, and 8 S r bytes of
partials.

``finish_rows`` reads 8 S r bytes of partials and one logit per row: a launch and little else.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from slot_vllm.kernels import row_statistics
from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.ragged import RowPart
from slot_vllm.kernels.triton.activation import activated
from slot_vllm.kernels.triton.processors import processors_of

MAX_SPLITS = 256


@dataclass(frozen=True)
class PartialBlocks:
    """rows x columns: a program's tile, powers of two. splits: ranges of columns at most."""

    rows: int
    columns: int
    splits: int
    warps: int


def partial_blocks(vocabulary: int, longest: int, rows: int, processors: int) -> PartialBlocks:
    """Eight programs of four warps for each multiprocessor, if there is so much to do.

    longest: rows of the longest request; rows: of all.
    """
    block_rows = 8 if longest > 2 else 2
    block_columns = min(1024, max(128, triton.next_power_of_2(vocabulary)))
    wanted = -(-8 * processors // -(-rows // block_rows))
    splits = max(1, min(wanted, MAX_SPLITS, -(-vocabulary // block_columns)))
    return PartialBlocks(block_rows, block_columns, splits, 4)


def row_partials(
    logits: Tensor,
    shifts: Tensor | None,
    part: RowPart,
    f: Activation,
    blocks: PartialBlocks | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``slot_vllm.kernels.row_statistics.row_partials``."""
    rows, vocabulary = logits.shape
    assert logits.stride(1) == 1 and len(part) == rows
    if not vocabulary:
        return row_statistics.row_partials.torch(logits, shifts, part, f)
    if blocks is None:
        longest = max(stop - start for _, start, stop in part.spans())
        blocks = partial_blocks(vocabulary, longest, rows, processors_of(logits.device))
    column_blocks = -(-vocabulary // blocks.columns)
    per_split = -(-column_blocks // min(blocks.splits, column_blocks))
    splits = -(-column_blocks // per_split)
    owners, starts = part.tiles(blocks.rows)
    maxima = torch.empty(splits, rows, dtype=torch.float32, device=logits.device)
    totals = torch.empty_like(maxima)
    _row_partials[(len(owners), splits)](
        logits,
        shifts,
        part.batch.offsets,
        owners,
        starts,
        maxima,
        totals,
        part.first,
        rows,
        vocabulary,
        logits.stride(0),
        0 if shifts is None else shifts.stride(0),
        per_split,
        f.soft_cap,
        f.scale,
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        num_warps=blocks.warps,
    )
    return maxima, totals


@triton.jit(do_not_specialize=["first", "rows", "per_split"])
def _row_partials(
    logits,
    shifts,
    offsets,
    owners,
    starts,
    maxima,
    totals,
    first,
    rows,
    vocabulary,
    logits_stride,
    shifts_stride,
    per_split,
    soft_cap,
    scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1)
    request = tl.load(owners + tile)
    start = tl.load(starts + tile)
    stop = tl.minimum(tl.load(offsets + request + 1) - first, rows)

    row = start + tl.arange(0, BLOCK_ROWS)
    here = row < stop
    pointers = logits + row.to(tl.int64)[:, None] * logits_stride
    if shifts is not None:
        shift_pointers = shifts + request.to(tl.int64) * shifts_stride
    maximum = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    begin = split * per_split * BLOCK_COLUMNS
    end = tl.minimum(begin + per_split * BLOCK_COLUMNS, vocabulary)
    for column_start in range(begin, end, BLOCK_COLUMNS):
        column = column_start + tl.arange(0, BLOCK_COLUMNS)
        inside = column < vocabulary
        mask = here[:, None] & inside[None, :]
        z = tl.load(pointers + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if shifts is not None:
            z += tl.load(shift_pointers + column, mask=inside, other=0.0)[None, :]
        y = tl.where(inside[None, :], activated(z, soft_cap, scale), float("-inf"))
        new = tl.maximum(maximum, tl.max(y, axis=1))
        # Rows that are -inf throughout keep a total of 0.
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(maximum - base) + tl.sum(tl.exp(y - base[:, None]), axis=1)
        maximum = new
    out = split.to(tl.int64) * rows + row
    tl.store(maxima + out, maximum, mask=here)
    tl.store(totals + out, total, mask=here)


_FINISH_ROWS = 16
_FINISH_SPLITS = 32


def finish_rows(
    maxima: Tensor,
    totals: Tensor,
    logits: Tensor,
    shifts: Tensor | None,
    part: RowPart,
    f: Activation,
    first_token: int = 0,
) -> tuple[Tensor, Tensor]:
    """See ``slot_vllm.kernels.row_statistics.finish_rows``."""
    splits, rows = maxima.shape
    assert maxima.is_contiguous() and totals.is_contiguous() and len(part) == rows
    lse = torch.empty(rows, dtype=torch.float32, device=maxima.device)
    target_logits = torch.empty_like(lse)
    if rows:
        _finish_rows[(-(-rows // _FINISH_ROWS),)](
            maxima,
            totals,
            logits,
            shifts,
            part.requests,
            part.targets,
            lse,
            target_logits,
            rows,
            splits,
            logits.shape[1],
            first_token,
            logits.stride(0),
            0 if shifts is None else shifts.stride(0),
            f.soft_cap,
            f.scale,
            BLOCK_ROWS=_FINISH_ROWS,
            BLOCK_SPLITS=_FINISH_SPLITS,
            num_warps=1,
        )
    return lse, target_logits


@triton.jit(do_not_specialize=["rows", "splits"])
def _finish_rows(
    maxima,
    totals,
    logits,
    shifts,
    requests,
    targets,
    lse,
    target_logits,
    rows,
    splits,
    vocabulary,
    first_token,
    logits_stride,
    shifts_stride,
    soft_cap,
    scale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = row < rows
    maximum = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        offset = split.to(tl.int64)[:, None] * rows + row[None, :]
        mask = (split < splits)[:, None] & here[None, :]
        part_maximum = tl.load(maxima + offset, mask=mask, other=float("-inf"))
        part_total = tl.load(totals + offset, mask=mask, other=0.0)
        new = tl.maximum(maximum, tl.max(part_maximum, axis=0))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(maximum - base)
        total += tl.sum(part_total * tl.exp(part_maximum - base[None, :]), axis=0)
        maximum = new
    # Nothing but -inf: the total is 0, the maximum says it all.
    tl.store(lse + row, maximum + tl.log(tl.where(total == 0.0, 1.0, total)), mask=here)

    column = tl.load(targets + row, mask=here, other=0) - first_token
    mine = here & (column >= 0) & (column < vocabulary)
    z = tl.load(logits + row.to(tl.int64) * logits_stride + column, mask=mine, other=0.0)
    z = z.to(tl.float32)
    if shifts is not None:
        request = tl.load(requests + row, mask=here, other=0).to(tl.int64)
        z += tl.load(shifts + request * shifts_stride + column, mask=mine, other=0.0)
    y = activated(z, soft_cap, scale)
    tl.store(target_logits + row, tl.where(mine, y, float("-inf")), mask=here)
