"""How much memory a process may still take, and what a model needs of it."""

import json
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from slot_vllm.evaluation.errors import ConfigError, RunFailed

_CGROUP = Path("/sys/fs/cgroup")
# Of a container, its limit and what it has: in version 2 of control groups, and in version 1.
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
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
    for limit_file, used_file in _LIMITS:
        try:
            limit = int((_CGROUP / limit_file).read_text())  # "max" where there is none
            left.append(limit - int((_CGROUP / used_file).read_text()))
        except (OSError, ValueError):
            pass
    return max(0, min(left))


def require(needed: int, what: str, error: type[ConfigError] | type[RunFailed]) -> None:
    """Raises ``error`` if fewer than ``needed`` bytes are there."""
    left = available()
    if left < needed:
        raise error(
            f"memory for {what}: {needed / _GB:.1f} GB are needed; available: {left / _GB:.1f} GB"
        )


def check_engine(options: Mapping[str, Any]) -> None:
    """Raises ConfigError where the weights of a local model and the KV cache that was asked for
    cannot fit. ``options`` are the arguments of ``vllm.LLM`` on a CPU."""
    model = Path(options["model"])
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if not stored:
        return
    weights = int(stored * _growth(model, options.get("dtype", "auto")))
    asked = float(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or 0) * 2**30
    cache = int(options.get("kv_cache_memory_bytes") or asked)
    what = f"model={options['model']!r}: its weights and a KV cache of {cache / _GB:.1f} GB"
    require(weights + cache, what, ConfigError)


def _growth(model: Path, dtype: str) -> float:
    """How much larger the weights are in memory than in their files."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    if "quantization_config" in config or {dtype, stored} - _ITEM_BYTES.keys():
        return 1.0
    return _ITEM_BYTES[dtype] / _ITEM_BYTES[stored]
