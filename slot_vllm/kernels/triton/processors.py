"""What the block sizes aim to fill: multiprocessors, and the shared memory of one."""

from functools import cache

import torch
from triton.runtime import driver

# An H100 or H200; also what plans made without a device assume.
_HOPPER = 132
_HOPPER_SHARED = 227 << 10


@cache
def processors_of(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOPPER
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_memory_of(device: torch.device) -> int:
    """Bytes that one program may have."""
    if device.type != "cuda":
        return _HOPPER_SHARED
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])
