"""Hidden states of prompts that are not complete yet."""

import torch
from torch import Tensor


class PromptBuffers:
    """Buffers of (n, d) hidden states, ``limit`` bytes of them on the device; what exceeds that
    waits in host memory. On a CPU the two are the same, and nothing is limited."""

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self._device = device
        # Held while vLLM measures memory and allocates its KV cache; torch's caching allocator
        # then serves the buffers from it.
        self._reserve = (
            None if device.type == "cpu" else torch.empty(limit, dtype=torch.uint8, device=device)
        )
        self.device_bytes = 0
        self.host_bytes = 0

    def open(self) -> None:
        """Leave the room to torch's allocator."""
        self._reserve = None

    def allocate(self, rows: int, size: int, dtype: torch.dtype) -> Tensor:
        self.open()
        wanted = rows * size * dtype.itemsize
        if self._device.type != "cpu" and self.device_bytes + wanted > self.limit:
            self.host_bytes += wanted
            return torch.empty(rows, size, dtype=dtype, pin_memory=True)
        self.device_bytes += wanted
        return torch.empty(rows, size, dtype=dtype, device=self._device)

    def release(self, buffer: Tensor) -> None:
        if buffer.device.type == self._device.type:
            self.device_bytes -= buffer.nbytes
        else:
            self.host_bytes -= buffer.nbytes
