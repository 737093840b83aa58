"""The least time that learning a batch's deltas needs on a device: the sum of those parts that no
implementation of the closed-form gradient can leave out, each measured in the same run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from slot_vllm.bench.shape import DTYPES, Shape
from slot_vllm.bench.timing import Timing
from slot_vllm.optim.head import Head

PRODUCT, EXPONENTIALS = "product", "exponentials"
WEIGHT, LOGITS = "reads of W", "reads of the exponentials"

# Of the logits that are timed; the time of more is in proportion. Larger than any cache.
_MOST_BYTES = 512 << 20
_INTEGERS = (torch.int64, torch.int32, torch.int16)


def parts(head: Head, shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """What is timed: the head product; the exponentials of Z0; one read of W; one read of the
    exponentials. They write into memory that is there before, and take at most 512 MiB of Z0."""
    rows, dtype = _timed_rows(shape), DTYPES[shape.dtype]
    hidden = torch.ones(rows, shape.hidden, dtype=dtype, device=shape.device)
    logits = torch.empty(rows, shape.vocabulary, dtype=dtype, device=shape.device)
    exponentials = torch.empty_like(logits)
    return {
        PRODUCT: lambda: torch.mm(hidden, head.weight.T, out=logits),
        EXPONENTIALS: lambda: torch.exp(logits, out=exponentials),
        WEIGHT: _read(head.weight),
        LOGITS: _read(exponentials),
    }


def floor(shape: Shape, timings: Mapping[str, Timing], ours: float, bare: float) -> dict[str, Any]:
    """Product of the distinct rows + exponentials + (2 T - 1) reads of W, once per batch + T reads
    of the exponentials.

    timings: of ``parts``. ours: seconds of learning. bare: of the fastest product of all rows; it
    counts where it is faster and no rows are shared. The result has ``floor_seconds``,
    ``floor_multiple`` (ours over the floor) and ``floor_parts``, the seconds of each part, summed
    over the times that it is done.
    """
    timed = _timed_rows(shape)
    share = shape.rows / timed
    product = shape.distinct_rows / timed * timings[PRODUCT].seconds
    seconds = {
        PRODUCT: product if shape.distinct_rows < shape.rows else min(product, bare),
        EXPONENTIALS: share * timings[EXPONENTIALS].seconds,
        WEIGHT: (2 * shape.steps - 1) * timings[WEIGHT].seconds,
        LOGITS: shape.steps * share * timings[LOGITS].seconds,
    }
    total = sum(seconds.values())
    return {"floor_seconds": total, "floor_multiple": ours / total, "floor_parts": seconds}


def _timed_rows(shape: Shape) -> int:
    row_bytes = shape.vocabulary * DTYPES[shape.dtype].itemsize
    return max(1, min(shape.rows, _MOST_BYTES // row_bytes))


def _read(tensor: Tensor) -> Callable[[], Tensor]:
    """A sum of the bytes as integers, which waits for memory alone."""
    data = tensor.reshape(-1)
    size = data.numel() * data.dtype.itemsize
    widest = next(dtype for dtype in _INTEGERS if size % dtype.itemsize == 0)
    integers = data.view(widest)
    return lambda: integers.sum()
