"""One rank's part of the vocabulary, and what the ranks exchange while they learn deltas.

A group of B prompts with n rows in all takes two all-gathers of float32 per step:

    rows       2 n floats, each row's log-sum-exp and target logit over this rank's columns
    gradients  B d floats, this rank's part of W^T (p - c)

one of 2 n for the loss after the last step, and one of 3 B for ``last_kl``, where they are wanted.
Rows that are made in several chunks, because they are too many or do not stay in the workspace, are
gathered chunk by chunk. The parts of the gradient are added up by each rank, in the order of the
ranks: so all take the same step, to the bit, however the group would have reduced them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from slot_vllm.optim.head import Head


class OtherRankFailed(RuntimeError):
    """This rank is well; another one is not, and says why itself."""

    def __init__(self) -> None:
        super().__init__("another tensor-parallel rank failed; its slot_errors say why")


class CollectiveFailed(RuntimeError):
    """A collective failed: the ranks can exchange nothing any more."""


@dataclass(frozen=True)
class Shard:
    """Columns ``first_token`` and on of the logits; the rank may have none.

    widest: columns of the largest shard. All ranks lay out their workspaces by it, and these are of
    one size: so they cut the rows into the same chunks and gather equally often.
    gather: a float32 tensor of this rank -> (ranks, *its shape), those of all ranks, in the same
    order on each (an all-gather).
    any_rank: whether a flag is set on any rank, known to the host of each.
    """

    first_token: int
    widest: int
    gather: Callable[[Tensor], Tensor]
    any_rank: Callable[[bool], bool]

    def widest_head(self, head: Head) -> Head:
        """The shape of the largest shard's head, without values: what layouts are made by."""
        shape = (self.widest, head.hidden_size)
        weight = torch.empty(shape, dtype=head.weight.dtype, device="meta")
        return Head(weight, None, head.soft_cap, head.scale)

    def merge(self, lse: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-sum-exp and target logits (r,) over the whole vocabulary, from this rank's."""
        gathered = self.gather(torch.stack((lse, target_logits)))
        # A target is in one shard; the others have -inf.
        return gathered[:, 0].logsumexp(dim=0), gathered[:, 1].amax(dim=0)

    def add(self, part: Tensor) -> Tensor:
        """The sum of ``part`` over the ranks, the same bits on each."""
        first, *others = self.gather(part)
        total = first.clone()
        for other in others:
            total += other
        return total


class Exchange:
    """The collectives of one group of prompts. A rank that fails alone goes on taking part in them,
    with zeros, so that no other waits for it; then all raise. Without a shard there are none."""

    def __init__(self, shard: Shard | None, device: torch.device) -> None:
        self.shard = None if shard is None else replace(shard, gather=self._gather)
        self._original = shard
        self._device = device
        self._left: list[tuple[int, ...]] = []
        self._zeros = torch.empty(0)

    def expect(self, shapes: Sequence[tuple[int, ...]]) -> None:
        # Now: a rank that fails may have no memory for them.
        self._zeros = torch.zeros(max(map(prod, shapes), default=0), device=self._device)
        self._left = list(reversed(shapes))

    def _gather(self, own: Tensor) -> Tensor:
        assert self._original is not None
        expected = self._left.pop()
        assert own.shape == expected, (own.shape, expected)
        try:
            return self._original.gather(own)
        except Exception as error:
            raise CollectiveFailed(f"an all-gather failed: {error}") from error

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """An error within on one rank is an error on all: OtherRankFailed on those that are well
        themselves. Raises CollectiveFailed where the ranks cannot agree."""
        if self._original is None:
            yield
            return
        error = None
        try:
            yield
        except CollectiveFailed:
            raise
        except Exception as raised:
            error = raised
            while self._left:
                shape = self._left[-1]
                self._gather(self._zeros[: prod(shape)].view(shape))
        if not self._original.any_rank(error is not None):
            return
        if error is not None:
            raise error
        raise OtherRankFailed
