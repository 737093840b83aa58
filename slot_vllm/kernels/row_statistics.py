"""Log-sum-exp and target logit of each row of cached logits, after each request's shift and f.

With y = f(z + shift): lse[i] = log sum_j exp(y[i, j]), in two parts, so that a row may be spread
over many programs, column ranges or devices: partial maxima and totals over ranges of columns,
then one log-sum-exp over the partials.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.backend import Kernel
from slot_vllm.kernels.ragged import RowPart

# Of float32 logits, at a time.
_TILE_BYTES = 8 << 20


@Kernel
def row_partials(
    logits: Tensor, shifts: Tensor | None, part: RowPart, f: Activation
) -> tuple[Tensor, Tensor]:
    """Maxima m and totals sum exp(y - m) over S ranges of columns, both (S, r) float32.

    logits: (r, V), any float dtype, before f; its rows are those of ``part``. shifts: (B, V)
    float32 or None, added to the rows of each request. S is the implementation's choice. With
    V = 0, an empty vocabulary shard, the maxima are -inf and the totals 0.
    """
    maxima = torch.full((1, len(part)), -torch.inf, device=logits.device)
    totals = torch.zeros_like(maxima)
    for _, rows, z in shifted_tiles(logits, shifts, part) if logits.shape[1] else ():
        y, _ = f.value_and_slope(z)
        maximum = torch.amax(y, dim=1, out=maxima[0, rows])
        torch.sum((y - maximum.unsqueeze(1)).exp_(), dim=1, out=totals[0, rows])
    return maxima, totals


@Kernel
def finish_rows(
    maxima: Tensor,
    totals: Tensor,
    logits: Tensor,
    shifts: Tensor | None,
    part: RowPart,
    f: Activation,
    first_token: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and target logit of each row, both (r,) float32.

    maxima, totals: of ``row_partials`` or ``head_product``. logits, shifts: as there.
    first_token: where this shard of the vocabulary begins; a target outside of
    [first_token, first_token + V) has the logit -inf here.
    """
    lse = torch.logsumexp(maxima + totals.log(), dim=0)
    columns = part.targets - first_token
    here = (columns >= 0) & (columns < logits.shape[1])
    target_logits = torch.full_like(lse, -torch.inf)
    rows = here.nonzero().squeeze(1)
    z = logits[rows, columns[rows]].float()
    if shifts is not None:
        z = z + shifts[part.requests[rows].long(), columns[rows]]
    target_logits[rows], _ = f.value_and_slope(z)
    return lse, target_logits


def shifted_tiles(
    logits: Tensor, shifts: Tensor | None, part: RowPart
) -> Iterator[tuple[int, slice, Tensor]]:
    """(request, rows, z + shift in float32), some rows of one request at a time, which keeps the
    memory small."""
    step = max(1, _TILE_BYTES // (4 * max(1, logits.shape[1])))
    for request, begin, end in part.spans():
        for start in range(begin, end, step):
            rows = slice(start, min(start + step, end))
            z = logits[rows].float()
            yield request, rows, z if shifts is None else z + shifts[request]
