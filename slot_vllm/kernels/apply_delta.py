"""Add each request's W delta to its rows of logits."""

from torch import Tensor

from slot_vllm.kernels import backend

_TILE = 64


def add_bias_rows(logits: Tensor, table: Tensor, rows: Tensor) -> None:
    """logits[i] += table[rows[i]] in place; row 0 of the table is zero and means "no delta".

    logits: (r, V) float32. table: (1 + capacity, V) float32. rows: (r,) int64. Rows of logits
    without a delta keep every bit.
    """
    if backend.uses_triton(logits):
        from slot_vllm.kernels.triton.apply_delta import add_bias_rows as on_device

        on_device(logits, table, rows)
    else:
        torch_add_bias_rows(logits, table, rows)


def torch_add_bias_rows(logits: Tensor, table: Tensor, rows: Tensor) -> None:
    if logits.device.type == "cpu":
        for i, row in enumerate(rows.tolist()):
            if row:
                logits[i].add_(table[row])
    else:
        # No wait for the device, and no more extra memory than a tile.
        for part, part_rows in zip(logits.split(_TILE), rows.split(_TILE), strict=True):
            part.add_(table[part_rows])
