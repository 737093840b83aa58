"""What a result was measured on."""

import os
import platform
from typing import Any

import torch

from slot_vllm import processor


def describe_machine(device: str) -> dict[str, Any]:
    """processor, cores (usable), threads (torch's), wait_policy (of OpenMP), memory_bytes, versions
    and, on CUDA, the GPU. load_before: the 1 min average of runnable processes; above 0, others
    were using the machine."""
    description: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        description["gpu"] = properties.name
        description["gpu_memory_bytes"] = properties.total_memory
        description["cuda"] = torch.version.cuda
    return description


def _processor() -> str:
    found = processor.described()
    if "model name" in found:
        keys = ("model name", "cpu family", "model")
        return ", ".join(f"{key} {found[key]}" for key in keys if key in found)
    return platform.processor() or platform.machine()
