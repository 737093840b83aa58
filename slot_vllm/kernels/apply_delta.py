"""Add each request's W delta to its rows of logits.

Floor, for k of r rows with a delta: 12 k V bytes (logits read and written, W delta read); at the
57 GB/s at which two cores read W, 0.03 ms per row of 151936. 16 rows take 0.5 ms, which is that;
64, which no cache holds, 10 ms, five times as much.

The bias per request was chosen over the deltas as further rows of the head's product, which lose W
delta's last bits to the model's dtype and, when both were measured on two cores, made the product
slower by more than the bias does. The price is memory: 4 V bytes for each request instead of d
values. Not compared on CUDA.
"""

from torch import Tensor

from slot_vllm.kernels.backend import Kernel

_TILE = 64


@Kernel
def add_bias_rows(
    logits: Tensor, table: Tensor, rows: Tensor, factors: Tensor | None = None
) -> None:
    """logits[i] += factors[i] * table[rows[i]] in place; row 0 of the table is zero and means "no
    delta".

    logits: (r, V) float32. table: (1 + capacity, V) float32. rows: (r,) int64. factors: (r,)
    float32; None: all are 1. Rows of logits without a delta keep every bit.
    """
    if logits.device.type == "cpu":
        each = [1.0] * len(rows) if factors is None else factors.tolist()
        for i, (row, factor) in enumerate(zip(rows.tolist(), each, strict=True)):
            if row:
                logits[i].add_(table[row], alpha=factor)
    else:
        # No wait for the device, and no more extra memory than a tile.
        for start in range(0, len(rows), _TILE):
            part = slice(start, start + _TILE)
            added = table[rows[part]]
            logits[part].add_(added if factors is None else added * factors[part].unsqueeze(1))
