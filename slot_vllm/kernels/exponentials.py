"""Softmax column sums without exponentials per step, for heads without a soft cap.

Once per prompt the logits become E = e^(y - max y), y = scale (z + bias), in the same memory. After
that a delta whose W delta is b has, with the factors u = e^(scale b - max scale b),

    column sums = scale u * (E^T (1 / (E u)))

so that a step is two matrix-vector products with E. E is rounded to the memory's dtype (float16
logits become bf16, whose range it needs): a relative error of up to 2^-9 per element. The logits'
own rounding, whose error is absolute, costs more wherever they are above 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slot_vllm.kernels.compiled import library_for

# Above this range of the exponents E's underflow, at e^-87, could be seen: the largest that a
# vocabulary of 2^20 can add to a row's sum of at least e^-RANGE is then 2e-6 of it.
RANGE = 60.0

# An exponential above this part of its row's total is worth a float32 logit: two in a row of text.
SHARPENED = 0.01

_LOWEST = -87.0
_GATHERED = 128


def stored(logits: Tensor) -> Tensor:
    """The memory of ``logits`` (r, V) in the dtype that holds their exponentials."""
    return logits.view(torch.bfloat16) if logits.dtype == torch.float16 else logits


@dataclass(frozen=True)
class Product:
    """What logits (r, V) were made of: hidden (r, d), weight (V, d), both of one dtype, and bias
    (V,) or None. With it the losses, and the exponentials above ``SHARPENED`` of their row's total,
    are made of float32 logits. That removes four fifths of the error that bf16 logits leave in
    delta."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Those logits, (m,) float32."""
        logits = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        # Some rows at a time, which bounds the memory.
        for out, row, column in zip(
            logits.split(_GATHERED), rows.split(_GATHERED), columns.split(_GATHERED), strict=True
        ):
            hidden, weight = self.hidden[row].float(), self.weight[column].float()
            torch.sum(hidden.mul_(weight), dim=1, out=out)
        return logits if self.bias is None else logits + self.bias[columns]


def to_exponentials(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    scratch: Tensor,
    column_sums: Tensor,
    losses: Tensor,
    margins: Tensor,
    product: Product | None = None,
) -> None:
    """Turn z into E in place; add the softmax's column sums, less ``scale`` at the targets.

    logits: (r, V) contiguous, before f; ``stored(logits)`` is E afterwards. bias: (V,) float32 or
    None. targets: (r,) int64. scratch: (m, V) float32, m >= 1, used by the torch form. Gives
    losses (r,) float32, log-sum-exp less the target's y, and margins (r,) float32, the row's
    largest y less the target's. column_sums: (V,) float32.

    Floor: r V exponentials, r V itemsize bytes read and written once. At r 256, V 151936, bf16, two
    cores: the bytes take 3.4 ms (as a copy), the compiled form about 13.
    """
    every = torch.arange(len(logits), device=logits.device)
    if product is None:
        at_targets = logits.gather(1, targets.unsqueeze(1)).squeeze(1).float()
    else:
        at_targets = product.exact(every, targets)
    if bias is not None:
        at_targets = at_targets + bias[targets]
    library = library_for(logits)
    if library is None:
        totals = _to_exponentials_torch(logits, bias, scale, scratch, column_sums, margins, product)
    else:
        totals = torch.empty_like(margins)
        made_of: tuple[Tensor | None, int, Tensor | None, int, int] = (None, 0, None, 0, 0)
        offset = bias
        if product is not None:
            hidden, weight = product.hidden, product.weight
            made_of = (hidden, hidden.stride(0), weight, weight.stride(0), weight.shape[1])
            assert hidden.dtype == weight.dtype == logits.dtype and hidden.stride(1) == 1
            if product.bias is not None:
                offset = product.bias.float() if bias is None else product.bias + bias
        library.slot_exponentials(
            logits,
            logits.dtype == torch.bfloat16,
            *logits.shape,
            bias,
            scale,
            *made_of,
            offset,
            SHARPENED,
            column_sums,
            margins,
            totals,
            torch.get_num_threads(),
        )
    margins -= scale * at_targets
    torch.add(margins, totals.log(), out=losses)
    column_sums.index_add_(0, targets, torch.full_like(losses, -scale))


def _to_exponentials_torch(
    logits: Tensor,
    bias: Tensor | None,
    scale: float,
    scratch: Tensor,
    column_sums: Tensor,
    maxima: Tensor,
    product: Product | None,
) -> Tensor:
    totals = torch.empty_like(maxima)
    exponentials = stored(logits)
    step = len(scratch)
    for start in range(0, len(logits), step):
        rows = slice(start, min(start + step, len(logits)))
        z = scratch[: rows.stop - start].copy_(logits[rows])
        if bias is not None:
            z.add_(bias)
        if scale != 1.0:
            z.mul_(scale)
        torch.amax(z, dim=1, out=maxima[rows])
        # Denormal numbers cost tens of cycles each.
        z.sub_(maxima[rows].unsqueeze(1)).clamp_(min=_LOWEST).exp_()
        torch.sum(z, dim=1, out=totals[rows])
        if product is not None:
            row, column = (z > SHARPENED * totals[rows].unsqueeze(1)).nonzero(as_tuple=True)
            exact = product.exact(row + start, column)
            if bias is not None:
                exact += bias[column]
            exact = exact.mul_(scale).sub_(maxima[row + start]).exp_()
            totals.index_add_(0, row + start, exact - z[row, column])
            z[row, column] = exact
        exponentials[rows].copy_(z)
        column_sums.addmv_(z.T, scale / totals[rows])
    return totals


def add_exponential_sums(
    exponentials: Tensor,
    bias: Tensor,
    targets: Tensor,
    scale: float,
    margins: Tensor,
    scratch: Tensor,
    factors: Tensor,
    column_sums: Tensor,
    losses: Tensor,
) -> None:
    """Add the column sums of softmax(y + scale bias), less ``scale`` at the targets.

    exponentials: (r, V) as ``to_exponentials`` left them, with their margins (r,). bias: (V,)
    float32; scale times its range is at most RANGE. factors: (V,) float32 and scratch: (m, V)
    float32, m >= 1, are overwritten. column_sums: (V,) and losses: (r,) float32, as above.

    Floor: r V itemsize bytes read once (1.7 ms at r 256, V 151936, bf16, two cores at the rate of
    a sum). The compiled form, which reads a cacheful twice, takes 4.5; the torch form, which widens
    to float32, about 12; a softmax pass by exponentials in torch about 42.
    """
    torch.mul(bias, scale, out=factors)
    maximum = factors.max()
    at_targets = factors[targets]
    factors.sub_(maximum).exp_()
    library = library_for(exponentials)
    if library is None:
        totals = _exponential_sums_torch(exponentials, factors, scale, scratch, column_sums)
    else:
        totals = torch.empty_like(losses)
        library.slot_exponential_sums(
            exponentials,
            exponentials.dtype == torch.bfloat16,
            *exponentials.shape,
            factors,
            scale,
            column_sums,
            totals,
            torch.get_num_threads(),
        )
    torch.add(margins, totals.log() + maximum - at_targets, out=losses)
    column_sums.index_add_(0, targets, torch.full_like(losses, -scale))


def _exponential_sums_torch(
    exponentials: Tensor, factors: Tensor, scale: float, scratch: Tensor, column_sums: Tensor
) -> Tensor:
    totals = exponentials.new_empty(len(exponentials), dtype=torch.float32)
    step = len(scratch)
    for start in range(0, len(exponentials), step):
        part = exponentials[start : start + step]
        tile = torch.mul(part, factors, out=scratch[: len(part)])
        # Not as a product with the factors: that loses the mass of many small numbers.
        total = torch.sum(tile, dim=1, out=totals[start : start + len(part)])
        column_sums.addmv_(tile.T, scale / total)
    return totals
