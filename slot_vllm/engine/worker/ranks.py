"""This worker's tensor-parallel group, as SLOT uses it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slot_vllm.optim.shard import OtherRankFailed


class Ranks:
    """What all ranks of a group do together, in the same order on each; with one rank, nothing.

    group: vLLM's ``GroupCoordinator``, or None for one rank.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.size: int = 1 if group is None else group.world_size
        self.rank: int = 0 if group is None else group.rank_in_group

    def gather(self, own: Tensor) -> Tensor:
        """(ranks, *own.shape), in the order of the ranks. own: of the same shape on each."""
        if self.size == 1:
            return own.unsqueeze(0)
        gathered: Tensor = self._group.all_gather(own.contiguous(), dim=0)
        return gathered.view(self.size, *own.shape)

    def gather_columns(self, own: Tensor) -> Tensor:
        """(r, ranks * k) from (r, k)."""
        return self.gather(own).transpose(0, 1).flatten(1)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Each value's maximum over the ranks, int64. On the hosts: no device is waited for."""
        if self.size == 1 or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(
            tensor, torch.distributed.ReduceOp.MAX, group=self._group.cpu_group
        )
        return [int(value) for value in tensor]

    def smallest(self, value: int) -> int:
        """The minimum over the ranks."""
        return ~self.largest([~value])[0]

    def together(self, work: Callable[[], object]) -> None:
        """Run ``work``, which exchanges nothing itself; what it raises on any rank is raised on
        all."""
        failed: Exception | None = None
        try:
            work()
        except Exception as error:
            failed = error
        if any(self.largest([failed is not None])):
            raise failed or OtherRankFailed()

    def same(self, digest: bytes) -> bool:
        """Whether all ranks gave the same 8 bytes."""
        value = int.from_bytes(digest, "big", signed=True)
        return self.largest([value]) == [self.smallest(value)]


ALONE = Ranks()
