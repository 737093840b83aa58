"""The least time that a GPU needs for one batch, from rates measured on it."""

from typing import Any

import torch

from slot_vllm.bench.shape import DTYPES, Shape
from slot_vllm.bench.timing import fastest
from slot_vllm.optim.head import Head


def roofline(head: Head, shape: Shape, bare_seconds: float, our_seconds: float) -> dict[str, Any]:
    """max(operations / measured matmul rate, bytes / measured copy rate), and our share of it.

    operations: of one n x V x d product, whose rate is the bare product's. bytes: W for the
    product, T transposed products and T - 1 products with delta; Z0 written once and read T times.
    The copy rate counts what is read and what is written.
    """
    operations = 2 * shape.rows * shape.vocabulary * shape.hidden
    weight_bytes = head.weight.numel() * head.weight.dtype.itemsize
    logit_bytes = shape.rows * shape.vocabulary * DTYPES[shape.dtype].itemsize
    moved = 2 * shape.steps * weight_bytes + (shape.steps + 1) * logit_bytes
    target = torch.empty_like(head.weight)
    copy_seconds = fastest({"copy": lambda: target.copy_(head.weight)}, 10, shape.device)[
        "copy"
    ].seconds
    matmul_rate = operations / bare_seconds
    copy_rate = 2 * weight_bytes / copy_seconds
    least = max(operations / matmul_rate, moved / copy_rate)
    return {
        "matmul_flops_per_second": matmul_rate,
        "copy_bytes_per_second": copy_rate,
        "seconds": least,
        "share": least / our_seconds,
    }
