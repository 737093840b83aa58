"""How many multiprocessors a device has: what the block sizes aim to fill."""

from functools import cache

import torch

# An H100 or H200; also what plans made without a device assume.
_HOPPER = 132


@cache
def processors_of(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOPPER
    return torch.cuda.get_device_properties(device).multi_processor_count
