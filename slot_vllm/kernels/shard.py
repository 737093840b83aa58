"""One rank's part of the vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Rows ``first_token`` and on of the whole head; the rank may have none.

    widest: columns of the largest shard. All ranks cut the rows into chunks by it, given workspaces
    of one size, so that they gather equally often.
    gather: (2, r) float32 of this rank -> (ranks, 2, r), those of all ranks, in the same order on
    each (an all-gather).
    """

    first_token: int
    widest: int
    gather: Callable[[Tensor], Tensor]

    def merge(self, lse: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-sum-exp and target logits (r,) over the whole vocabulary, from this rank's."""
        gathered = self.gather(torch.stack((lse, target_logits)))
        # A target is in one shard; the others have -inf.
        return gathered[:, 0].logsumexp(dim=0), gathered[:, 1].amax(dim=0)
