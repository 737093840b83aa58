"""A matrix in float32, a tile at a time that a CPU's caches hold."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Measured on two cores with 1 MiB of second and 32 MiB of third level cache, d 1536: tiles of 4 to
# 12 MiB take equally long, smaller ones pay per call, larger ones go to memory.
TILE_BYTES = 6 << 20


def float32_tiles(matrix: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(first row, last row + 1, rows) of ``matrix`` (m, k) in float32; each ``rows`` is valid until
    the next one. float32 matrices come as a whole."""
    if matrix.dtype == torch.float32:
        yield 0, matrix.shape[0], matrix
        return
    rows = max(1, min(matrix.shape[0], TILE_BYTES // (4 * matrix.shape[1])))
    buffer = torch.empty(rows, matrix.shape[1], dtype=torch.float32, device=matrix.device)
    for start in range(0, matrix.shape[0], rows):
        part = matrix[start : start + rows]
        yield start, start + len(part), buffer[: len(part)].copy_(part)
