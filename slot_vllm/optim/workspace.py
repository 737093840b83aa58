"""A block of memory of fixed size from which the optimizer takes all its large tensors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64
_MIB = 1 << 20
_CPU_MB = 512
# On CUDA: of the memory free when the model is loaded. Logits of 4096 rows over 152k tokens are
# 1.2 GB in 16 bits; a larger share would be taken from the KV cache.
_SHARE = 0.02
_LEAST_MB, _MOST_MB = 256, 4096


@dataclass(frozen=True)
class WorkspaceSize:
    """mb: MiB. reason: where it comes from, for the log."""

    mb: int
    reason: str

    @property
    def bytes(self) -> int:
        return self.mb * _MIB


def choose_size(workspace_mb: int | None, device: torch.device) -> WorkspaceSize:
    """``workspace_mb``, or if that is None the default: 512 MiB on a CPU; on CUDA 2 % of the memory
    that is free now in whole MiB, at least 256 and at most 4096."""
    if workspace_mb is not None:
        return WorkspaceSize(workspace_mb, "as set")
    if device.type != "cuda":
        return WorkspaceSize(_CPU_MB, f"default on {device.type}")
    free, _ = torch.cuda.mem_get_info(device)
    mb = min(_MOST_MB, max(_LEAST_MB, int(free * _SHARE) // _MIB))
    return WorkspaceSize(
        mb,
        f"default: {_SHARE:.0%} of the {free // _MIB} MiB free at load, "
        f"at least {_LEAST_MB}, at most {_MOST_MB}",
    )


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
