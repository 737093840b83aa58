"""Deltas that later requests with an equal prompt may use."""

from collections import OrderedDict
from dataclasses import replace

import torch

from slot_vllm.optim.optimize import Learned


class DeltaCache:
    """The deltas used last: (k, d) float32 on ``device``, ``limit`` bytes of them, allocated now:
    before vLLM measures what is left for its KV cache. waits: for the device, to know whether a
    delta is finite: so all tensor-parallel ranks know the same."""

    def __init__(self, limit: int, size: int, device: torch.device, waits: bool = False) -> None:
        self.waits = waits
        self._deltas = torch.empty(limit // (4 * size), size, dtype=torch.float32, device=device)
        self._free = list(range(len(self._deltas)))
        # A row of ``_deltas``, and all else that was learned.
        self._entries: OrderedDict[bytes, tuple[int, Learned]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def capacity(self) -> int:
        return len(self._deltas)

    def get(self, key: bytes) -> Learned | None:
        if key not in self._entries:
            return None
        row, learned = self._entries[key]
        if learned.known_not_finite(self.waits):
            # What was not finite once, a fault, need not be so again.
            del self._entries[key]
            self._free.append(row)
            return None
        self._entries.move_to_end(key)
        # A copy: the row may become another's while a request still has its delta.
        return replace(learned, delta=self._deltas[row].clone())

    def put(self, key: bytes, learned: Learned) -> None:
        if not self.capacity or key in self._entries:
            return
        if not self._free:
            self._free.append(self._entries.popitem(last=False)[1][0])
        row = self._free[-1]
        self._deltas[row].copy_(learned.delta)
        self._free.pop()
        self._entries[key] = (row, replace(learned, delta=self._deltas[row]))

    def clear(self) -> None:
        self._free = list(range(self.capacity))
        self._entries.clear()
