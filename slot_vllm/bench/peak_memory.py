"""Peak extra memory of one variant, measured in a process of its own.

    python -m slot_vllm.bench.peak_memory '{"hidden": ..., ...}' VARIANT

prints the bytes: on a CPU the process's peak of resident memory over what was resident when the
model and the prompts were there, on CUDA the same of torch's allocator. Our workspace counts.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch

from slot_vllm.bench.shape import Shape, make_problem
from slot_vllm.bench.variants import make_variant, warm_up


def peak_extra_bytes(shape: Shape, variant: str) -> int:
    """Starts the process. Raises CalledProcessError if it fails; its own message is on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, json.dumps(shape.as_dict()), variant],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout.splitlines()[-1])


def _measure(shape: Shape, variant: str) -> int:
    warm_up(shape, variant)
    head, prompts = make_problem(shape)
    if torch.device(shape.device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make_variant(variant, head, prompts, shape.workspace_mb)()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # What was freed but is still resident would hide as much of what comes. Linux then starts a new
    # peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    make_variant(variant, head, prompts, shape.workspace_mb)()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    print(_measure(Shape(**json.loads(sys.argv[1])), sys.argv[2]))
