"""The head's product fused with the first pass of the softmax, on CUDA.

A program takes a tile of rows and walks a range of columns, block by block: the product of a block
in float32 accumulators, rounded to the model's dtype, written out, and folded into the running
maximum and total of each row. Rows of different requests share a tile, so many short prompts are
one product. Tiles of rows are neighbours in the grid: they read the same block of W at about the
same time, once from memory.

Floor, for r rows, hidden size d, V columns of s bytes (2 in bf16): 2 r V d operations; (V d + r d +
r V) s bytes, of which r V s are Z0 written. With 128 or more rows bound by the operations (at 16
bit an H200 does about 160 of them per byte), below by reading W. What is folded in costs r V
exponentials, 1/(2 d) of the operations, and no bytes but 8 S r of partials.
Beyond the floor: H is read from the second level cache once per block of columns; the tensor cores
wait while a block is folded in, which is why the last tile of a program is as long as the others.
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
from slot_vllm.kernels.triton.processors import processors_of, shared_memory_of
from slot_vllm.kernels.triton.row_statistics import MAX_SPLITS


@dataclass(frozen=True)
class ProductBlocks:
    """rows x columns: a program's tile of Z; depth: how much of d at a time; all powers of two, 16
    or more. splits: ranges of columns at most."""

    rows: int
    columns: int
    depth: int
    splits: int
    warps: int
    stages: int


# (rows up to, block rows, block columns, block depth, warps, stages), chosen by what compiles for
# compute capability 9.0 to warpgroup products (from 64 rows on) without spilled registers. A bias,
# shift or soft cap needs registers where a block is folded in; the wide block leaves none.
_SIXTEEN_BIT = [
    (16, 16, 128, 64, 4, 6),
    (32, 32, 128, 64, 4, 6),
    (64, 64, 128, 64, 4, 4),
    (1 << 31, 128, 128, 64, 8, 4),
]
_SIXTEEN_BIT_PLAIN = [*_SIXTEEN_BIT[:-1], (1 << 31, 128, 256, 64, 8, 4)]
# What the wide block takes: four stages of (128 + 256) x 64 elements of 2 bytes.
_WIDE_SHARED = 4 * (128 + 256) * 64 * 2
_FLOAT32 = [(16, 16, 64, 32, 4, 3), (1 << 31, 64, 64, 32, 4, 3)]


def product_blocks(
    hidden_size: int,
    vocabulary: int,
    rows: int,
    itemsize: int,
    plain: bool,
    processors: int,
    shared_memory: int,
) -> ProductBlocks:
    """One program for each multiprocessor, if there is so much to do. plain: no bias, shift or
    soft cap. shared_memory: bytes; compute capability 8.6, 8.9 and 12.0 have 99 KiB."""
    wide = plain and shared_memory >= _WIDE_SHARED
    table = _FLOAT32 if itemsize == 4 else _SIXTEEN_BIT_PLAIN if wide else _SIXTEEN_BIT
    _, block_rows, columns, depth, warps, stages = next(b for b in table if rows <= b[0])
    depth = min(depth, max(16, triton.next_power_of_2(hidden_size)))
    wanted = -(-processors // -(-rows // block_rows))
    splits = max(1, min(wanted, MAX_SPLITS, -(-vocabulary // columns)))
    return ProductBlocks(block_rows, columns, depth, splits, warps, stages)


def head_product(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shifts: Tensor | None,
    part: RowPart,
    f: Activation,
    out: Tensor,
    blocks: ProductBlocks | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``slot_vllm.kernels.head_product.head_product``."""
    (rows, hidden_size), vocabulary = hidden.shape, weight.shape[0]
    assert out.shape == (rows, vocabulary) and len(part) == rows
    assert hidden.dtype == weight.dtype == out.dtype
    assert hidden.stride(1) == weight.stride(1) == out.stride(1) == 1
    if not vocabulary:
        return row_statistics.row_partials.torch(out, shifts, part, f)
    if blocks is None:
        blocks = product_blocks(
            hidden_size,
            vocabulary,
            rows,
            weight.dtype.itemsize,
            bias is None and shifts is None and f.soft_cap is None,
            processors_of(weight.device),
            shared_memory_of(weight.device),
        )
    column_blocks = -(-vocabulary // blocks.columns)
    per_split = -(-column_blocks // min(blocks.splits, column_blocks))
    splits = -(-column_blocks // per_split)
    row_tiles = -(-rows // blocks.rows)
    maxima = torch.empty(splits, rows, dtype=torch.float32, device=weight.device)
    totals = torch.empty_like(maxima)
    _head_product[(row_tiles * splits,)](
        hidden,
        weight,
        bias,
        shifts,
        part.requests,
        out,
        maxima,
        totals,
        rows,
        row_tiles,
        vocabulary,
        hidden_size,
        hidden.stride(0),
        weight.stride(0),
        0 if shifts is None else shifts.stride(0),
        out.stride(0),
        per_split,
        f.soft_cap,
        f.scale,
        # float32 models are promised float32 products.
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
        EVEN_DEPTH=hidden_size % blocks.depth == 0,
        BLOCK_ROWS=blocks.rows,
        BLOCK_COLUMNS=blocks.columns,
        BLOCK_DEPTH=blocks.depth,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return maxima, totals


@triton.jit(do_not_specialize=["rows", "row_tiles", "per_split"])
def _head_product(
    hidden,
    weight,
    bias,
    shifts,
    requests,
    out,
    maxima,
    totals,
    rows,
    row_tiles,
    vocabulary,
    hidden_size,
    hidden_stride,
    weight_stride,
    shifts_stride,
    out_stride,
    per_split,
    soft_cap,
    scale,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    program = tl.program_id(0)
    first_row = (program % row_tiles) * BLOCK_ROWS
    split = program // row_tiles

    tile_row = tl.arange(0, BLOCK_ROWS)
    here = first_row + tile_row < rows
    depth = tl.arange(0, BLOCK_DEPTH)
    # Rows and columns beyond the end read the last one again: cheaper than a mask in the loop.
    source_row = tl.minimum(tile_row, rows - 1 - first_row)
    hidden_tile = hidden + first_row.to(tl.int64) * hidden_stride
    hidden_tile += source_row[:, None] * hidden_stride + depth[None, :]
    out_tile = out + first_row.to(tl.int64) * out_stride + tile_row[:, None] * out_stride
    if shifts is not None:
        request = tl.load(requests + first_row + source_row).to(tl.int64)
        shift_tile = shifts + request[:, None] * shifts_stride

    maximum = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    begin = split * per_split * BLOCK_COLUMNS
    end = tl.minimum(begin + per_split * BLOCK_COLUMNS, vocabulary)
    weight_block = weight + begin.to(tl.int64) * weight_stride
    for column_start in range(begin, end, BLOCK_COLUMNS):
        tile_column = tl.arange(0, BLOCK_COLUMNS)
        column = column_start + tile_column
        inside = column < vocabulary
        source_column = tl.minimum(tile_column, vocabulary - 1 - column_start)
        weight_tile = weight_block + source_column[None, :] * weight_stride + depth[:, None]
        z = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for done in range(0, hidden_size, BLOCK_DEPTH):
            if EVEN_DEPTH:
                h = tl.load(hidden_tile + done)
                w = tl.load(weight_tile + done)
            else:
                left = depth < hidden_size - done
                h = tl.load(hidden_tile + done, mask=left[None, :], other=0.0)
                w = tl.load(weight_tile + done, mask=left[:, None], other=0.0)
            z = tl.dot(h, w, z, input_precision=PRECISION)

        if bias is not None:
            z += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        rounded = z.to(out.dtype.element_ty)
        mask = here[:, None] & inside[None, :]
        tl.store(out_tile + column[None, :], rounded, mask=mask)
        z = rounded.to(tl.float32)
        if shifts is not None:
            z += tl.load(shift_tile + column[None, :], mask=mask, other=0.0)
        y = tl.where(inside[None, :], activated(z, soft_cap, scale), float("-inf"))
        new = tl.maximum(maximum, tl.max(y, axis=1))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(maximum - base) + tl.sum(tl.exp(y - base[:, None]), axis=1)
        maximum = new
        weight_block += BLOCK_COLUMNS * weight_stride
    row = first_row + tile_row
    partial = split.to(tl.int64) * rows + row
    tl.store(maxima + partial, maximum, mask=here)
    tl.store(totals + partial, total, mask=here)
