"""Deltas that later requests with an equal prompt may use."""

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams


def prompt_key(
    tokens: list[int],
    skipped: int,
    params: SlotParams,
    lora_request: Any,
    cache_salt: str | None,
    epoch: tuple[int, int],
) -> bytes:
    """What determines a delta: 32 bytes, a SHA-256. skipped: how many of the first tokens are not
    learned from. epoch: of the weights, and of the adapter's. Where a delta fades is none of it."""
    lora = None
    if lora_request is not None:
        lora = (lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path)
    learning = params.model_dump_json(exclude={"window", "half_life"})
    settings = (len(tokens), skipped, learning, lora, cache_salt, epoch)
    key = hashlib.sha256(repr(settings).encode())
    key.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return key.digest()


class DeltaCache:
    """The deltas used last: (k, d) float32 on ``device``, ``limit`` bytes of them, allocated now:
    before vLLM measures what is left for its KV cache. waits: for the device, to know whether a
    delta is finite: so all tensor-parallel ranks know the same."""

    def __init__(self, limit: int, size: int, device: torch.device, waits: bool = False) -> None:
        self._waits = waits
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
        if learned.known_not_finite(self._waits):
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
