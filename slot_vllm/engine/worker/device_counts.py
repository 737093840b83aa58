"""Counters of what only the device knows, without a step that waits for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


class DeviceCounts:
    """One int64 counter per name."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._index = {name: i for i, name in enumerate(names)}
        self._counts = torch.zeros(len(names), dtype=torch.int64, device=device)
        self._arrived = torch.zeros(len(names), dtype=torch.int64, pin_memory=device.type == "cuda")

    def add(self, name: str, flags: Sequence[Tensor]) -> None:
        """Count those of ``flags``, () bool on the device, that are true."""
        self._counts[self._index[name]] += torch.stack(list(flags)).sum()
        # On its way to the host; what is there until it comes is an earlier count.
        self._arrived.copy_(self._counts, non_blocking=True)

    def arrived(self, name: str) -> int:
        """What the host knows by now."""
        return int(self._arrived[self._index[name]])

    def read(self, name: str) -> int:
        """Waits for the device."""
        return int(self._counts[self._index[name]])
