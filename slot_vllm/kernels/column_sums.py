"""Column sums of the softmax's gradient, for each request.

With z = logits + shift and y = f(z), request r's sums are, for each column j,

    sums[r, j] += sum over its rows i of (exp(y[i, j] - lse[i]) - [j is i's target]) f'(z[i, j])

so that W^T sums is the gradient of its summed losses with respect to delta (see softmax_sums).
"""

from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.backend import Kernel
from slot_vllm.kernels.ragged import RowPart
from slot_vllm.kernels.row_statistics import shifted_tiles


@Kernel
def add_column_sums(
    logits: Tensor,
    shifts: Tensor | None,
    lse: Tensor,
    part: RowPart,
    f: Activation,
    sums: Tensor,
    first_token: int = 0,
) -> None:
    """Add to ``sums`` (B, V) float32, in place, the rows of ``part``.

    logits: (r, V), any float dtype, before f. shifts: (B, V) float32 or None. lse: (r,) float32,
    over the whole vocabulary. first_token: where this shard of the vocabulary begins.
    The result is the same in every run: no sum depends on the order in which programs finish.
    """
    columns = part.targets - first_token
    for request, rows, z in shifted_tiles(logits, shifts, part):
        y, slope = f.value_and_slope(z)
        p = (y - lse[rows].unsqueeze(1)).exp_()
        here = (columns[rows] >= 0) & (columns[rows] < logits.shape[1])
        at = here.nonzero().squeeze(1)
        p[at, columns[rows][at]] -= 1
        p *= slope
        sums[request] += p.sum(dim=0)
