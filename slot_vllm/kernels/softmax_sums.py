"""Column sums of a softmax over the rows of a tile of logits, and each row's loss.

With z = z0 + bias (before f) and y = f(z) = scale * soft_cap * tanh(z / soft_cap), or scale * z:

    column_sums += sum_i softmax(y_i) * f'(z_i) - f'(z_i)[target_i] e_{target_i}
    losses[i]    = logsumexp(y_i) - y_i[target_i]

so that W^T column_sums is the gradient of the summed losses with respect to delta.

Floor: r V itemsize bytes of logits read and r V exponentials (with a soft cap as many tangents);
on a CPU the exponentials rule. torch's operations go about eight times, not once, over a tile that
stays in the cache. Where nothing caps the logits, ``exponentials`` takes the place of all this.
"""

import torch
from torch import Tensor


def add_softmax_sums(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    soft_cap: float | None,
    scale: float,
    scratch: Tensor,
    column_sums: Tensor,
    losses: Tensor,
) -> None:
    """Add one tile's sums to ``column_sums`` (V,) float32 and write its ``losses`` (r,) float32.

    logits: (r, V), any float dtype, before f. bias: (V,) float32 or None. targets: (r,) int64.
    scratch: (1, r, V) float32, or (2, r, V) with a soft cap. Allocates nothing of size r x V.
    """
    z = scratch[0].copy_(logits)
    if bias is not None:
        z.add_(bias)
    if soft_cap is not None:
        z.div_(soft_cap).tanh_()
        slope = torch.square(z, out=scratch[1]).neg_().add_(1.0)
        z.mul_(soft_cap)
    if scale != 1.0:
        z.mul_(scale)
    target_logits = z.gather(1, targets.unsqueeze(1)).squeeze(1)
    maximum = z.amax(dim=1)
    z.sub_(maximum.unsqueeze(1)).exp_()
    total = z.sum(dim=1)
    torch.sub(maximum + total.log(), target_logits, out=losses)

    if soft_cap is None:
        column_sums.addmv_(z.T, scale / total)
        at_targets = torch.full_like(losses, scale)
    else:
        at_targets = scale * slope.gather(1, targets.unsqueeze(1)).squeeze(1)
        column_sums.addmv_(z.mul_(slope).T, scale / total)
    column_sums.index_add_(0, targets, at_targets, alpha=-1)
