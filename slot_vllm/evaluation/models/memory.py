"""How much memory a process may still take: of the machine, its container and its own limits."""

import resource
from pathlib import Path

import psutil

from slot_vllm.evaluation.config import ConfigError, RunFailed

_CGROUP = Path("/sys/fs/cgroup")
_GB = 1e9


def available() -> int:
    """Bytes, the least of what the three leave."""
    process = psutil.Process().memory_info()
    left = [psutil.virtual_memory().available]
    for kind, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, process.data)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - used)
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        left.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(left))


def require(needed: int, what: str, error: type[ConfigError] | type[RunFailed]) -> None:
    """Raises ``error`` if fewer than ``needed`` bytes are there."""
    left = available()
    if left < needed:
        raise error(f"{what} needs {needed / _GB:.1f} GB of memory; available: {left / _GB:.1f} GB")
