"""Deltas that later requests with an equal prompt may use."""

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np

from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams

_OVERHEAD = 512


def prompt_key(
    tokens: list[int], params: SlotParams, lora_request: Any, cache_salt: str | None, epoch: int
) -> bytes:
    """What determines a delta: 32 bytes, a SHA-256. epoch: of the weights."""
    lora = None
    if lora_request is not None:
        lora = (lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path)
    settings = (len(tokens), params.model_dump_json(), lora, cache_salt, epoch)
    key = hashlib.sha256(repr(settings).encode())
    key.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return key.digest()


class DeltaCache:
    """The deltas used last, ``limit`` bytes of them at most."""

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self._limit = limit
        self._learned: OrderedDict[bytes, Learned] = OrderedDict()

    def __len__(self) -> int:
        return len(self._learned)

    def get(self, key: bytes) -> Learned | None:
        learned = self._learned.get(key)
        if learned is not None:
            self._learned.move_to_end(key)
        return learned

    def put(self, key: bytes, learned: Learned) -> None:
        if key not in self._learned:
            self.bytes += _size(learned)
            self._learned[key] = learned
        while self.bytes > self._limit:
            self.bytes -= _size(self._learned.popitem(last=False)[1])

    def clear(self) -> None:
        self.bytes = 0
        self._learned.clear()


def _size(learned: Learned) -> int:
    return learned.delta.nbytes + learned.losses.nbytes + _OVERHEAD
