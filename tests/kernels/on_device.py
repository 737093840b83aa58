"""What the kernels that a device gets do there, against their torch versions and the oracle."""

import torch
from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.adamw import AdamW, adamw_step
from slot_vllm.kernels.apply_delta import add_bias_rows
from slot_vllm.kernels.column_sums import add_column_sums
from slot_vllm.kernels.head_product import head_product
from slot_vllm.kernels.ragged import RaggedRows, RowPart
from slot_vllm.kernels.request_losses import add_request_losses
from slot_vllm.kernels.row_statistics import finish_rows, row_partials


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def check_passes(
    device: str,
    dtype: torch.dtype,
    soft_cap: float | None,
    lengths: list[int],
    vocabulary: int,
    hidden_size: int,
    first_token: int = 0,
) -> None:
    """The product, both passes over its logits and the losses."""
    torch.manual_seed(0)
    total, f = sum(lengths), Activation(soft_cap, 0.5)
    targets = torch.randint(first_token + vocabulary, (total,)).to(device)
    part: RowPart = RaggedRows(lengths, targets).part(0, total)
    hidden = torch.randn(total, hidden_size).to(device, dtype)
    weight = (torch.randn(vocabulary, hidden_size) * 0.4).to(device, dtype)
    bias = torch.randn(vocabulary).to(device, dtype)
    eps = max(2e-5, 2 * torch.finfo(dtype).eps)
    for shifts in (None, torch.randn(len(lengths), vocabulary).to(device)):
        logits = torch.empty(total, vocabulary, dtype=dtype, device=device)
        plain = torch.empty_like(logits)
        partials = head_product(hidden, weight, bias, shifts, part, f, logits)
        head_product.torch(hidden, weight, bias, shifts, part, f, plain)
        close(logits, plain, eps * hidden_size**0.5)
        expected = finish_rows.torch(
            *row_partials.torch(logits, shifts, part, f), logits, shifts, part, f, first_token
        )
        for maxima, totals in (partials, row_partials(logits, shifts, part, f)):
            found = finish_rows(maxima, totals, logits, shifts, part, f, first_token)
            for mine, theirs in zip(found, expected, strict=True):
                close(mine, theirs, 5e-5)
        lse, target_logits = expected
        sums = torch.randn(len(lengths), vocabulary).to(device)
        plain_sums = sums.clone()
        add_column_sums(logits, shifts, lse, part, f, sums, first_token)
        add_column_sums.torch(logits, shifts, lse, part, f, plain_sums, first_token)
        close(sums, plain_sums, 1e-4)
        losses = torch.zeros(len(lengths), 2, dtype=torch.float64, device=device)
        there = torch.where(target_logits.isinf(), 0.0, target_logits)
        add_request_losses(lse, there, part, losses[:, 0])
        add_request_losses.torch(lse, there, part, losses[:, 1])
        close(losses[:, 0], losses[:, 1], 1e-6)


def check_adamw(device: str) -> None:
    torch.manual_seed(0)
    settings = torch.tensor([[0.1, 0.9, 0.999, 1e-5, 1e-8], [1.0, 0.5, 0.8, 1e-2, 0.3]])
    mine, plain = (AdamW.at_zero(settings.to(device), 1500) for _ in range(2))
    for step in range(1, 8):
        gradient = torch.randn(2, 1500).to(device)
        adamw_step(gradient, mine, step)
        adamw_step.torch(gradient, plain, step)
    for name in ("parameter", "first", "second"):
        close(getattr(mine, name), getattr(plain, name), 1e-4)


def check_apply_delta(device: str) -> None:
    torch.manual_seed(0)
    rows = torch.tensor([0, 2, 2, 0, 1]).to(device)
    table = torch.randn(3, 5000).to(device)
    table[0] = 0.0
    logits = torch.randn(5, 5000).to(device)
    logits[0] = -0.0
    before, plain = logits.clone(), logits.clone()
    add_bias_rows(logits, table, rows)
    add_bias_rows.torch(plain, table, rows)
    assert torch.equal(logits, plain)
    factors = torch.tensor([0.0, 1.0, 0.3, 0.5, 2.0]).to(device)
    add_bias_rows(logits, table, rows, factors)
    add_bias_rows.torch(plain, table, rows, factors)
    close(logits, plain, 1e-6)
    untouched = rows == 0
    assert torch.equal(logits[untouched].view(torch.int32), before[untouched].view(torch.int32))
