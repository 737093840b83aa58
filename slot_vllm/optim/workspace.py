"""A block of memory of fixed size from which the optimizer takes all its large tensors."""

import math

import torch
from torch import Tensor

_ALIGNMENT = 64


class Workspace:
    """``size`` bytes on ``device``, allocated and touched at once, so that a memory profile
    taken afterwards contains them."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self._bytes = torch.zeros(size, dtype=torch.uint8, device=device)
        self._used = 0

    @property
    def size(self) -> int:
        return self._bytes.numel()

    @property
    def free(self) -> int:
        return self.size - self._used

    def reset(self) -> None:
        """Take back everything that was handed out."""
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor; it is valid until ``reset``. Raises MemoryError."""
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > self.free:
            raise MemoryError(
                f"the SLOT workspace has {self.free} of {self.size} bytes left, {wanted} are needed"
            )
        block = self._bytes[self._used : self._used + wanted]
        self._used = min(self.size, self._used + aligned(wanted))
        return block.view(dtype).view(shape)


def aligned(size: int) -> int:
    """``size`` bytes rounded up to what ``Workspace.take`` uses of the block."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
