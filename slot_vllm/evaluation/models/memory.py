"""How much memory a process may still take, and what a model needs of it."""

import json
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.optim.workspace import choose_size

_CGROUP = Path("/sys/fs/cgroup")
# Of a container, its limit, what it has, and the part of it that the kernel gives back before it
# ends a process: in version 2 of control groups, and in version 1.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        *("memory/memory.stat", "total_inactive_file"),
    ),
)
# Of a run beside weights, cache and workspace, and for each byte of weights while vLLM loads them:
# fitted to the peaks of logs/full/real_models.log.
_PROGRAM = 1.34e9
_LOADING = 0.41
_GB = 1e9
_ITEM_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


def available() -> int:
    """Bytes: the least of what the machine, the container and the process's own limits leave."""
    process = psutil.Process().memory_info()
    left = [psutil.virtual_memory().available]
    for kind, used in ((resource.RLIMIT_AS, process.vms), (resource.RLIMIT_DATA, process.data)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - used)
    for limit_file, used_file, parts, reclaimable in _LIMITS:
        with suppress(OSError, ValueError):
            free = int((_CGROUP / limit_file).read_text())  # "max" where there is no limit
            free -= int((_CGROUP / used_file).read_text())
            with suppress(OSError, ValueError):
                counts = (_CGROUP / parts).read_text().splitlines()
                free += int(dict(line.split() for line in counts).get(reclaimable, 0))
            left.append(free)
    return max(0, min(left))


def require(needed: int, what: str, error: type[ConfigError] | type[RunFailed]) -> None:
    """Raises ``error`` if fewer than ``needed`` bytes are there."""
    left = available()
    if left < needed:
        raise error(
            f"memory for {what}: {needed / _GB:.1f} GB are needed; available: {left / _GB:.1f} GB"
        )


def needed(weights: int, cache: int, workspace: int) -> int:
    """Bytes of a run on a CPU, all told: weights, KV cache and SLOT's workspace in bytes."""
    return int((1 + _LOADING) * weights + cache + workspace + _PROGRAM)


def check_engine(options: Mapping[str, Any]) -> None:
    """Raises ConfigError where the weights of a local model, the KV cache that was asked for and
    SLOT's workspace cannot fit. ``options`` are the arguments of ``vllm.LLM`` on a CPU."""
    model = Path(options["model"])
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if not stored:
        return
    weights = int(stored * _growth(model, options.get("dtype", "auto")))
    asked = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or 0) * 2**30
    cache = int(options.get("kv_cache_memory_bytes") or asked)
    slot = (options.get("additional_config") or {}).get("slot")
    workspace = (
        choose_size(slot.get("workspace_mb"), torch.device("cpu")).bytes if slot is not None else 0
    )
    # What this process holds is no longer available.
    here = min(int(_PROGRAM), psutil.Process().memory_info().rss)
    what = (
        f"model={options['model']!r}: its weights, a KV cache of {cache / _GB:.1f} GB and loading"
    )
    require(needed(weights, cache, workspace) - here, what, ConfigError)


def _growth(model: Path, dtype: str) -> float:
    """How much larger the weights are in memory than in their files."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    if "quantization_config" in config or {dtype, stored} - _ITEM_BYTES.keys():
        return 1.0
    return _ITEM_BYTES[dtype] / _ITEM_BYTES[stored]
