"""The compiled CPU kernels of ``cpu.cpp``: built on first use where there is a compiler.

One C++ file without torch's headers, called through ctypes: two seconds to build, nothing to link
but OpenMP, which the process has from torch already. The file lies in the user's cache under a name
made of all that went into it, and is renamed into place, so that any number of processes may build
it at once.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from slot_vllm import processor

logger = logging.getLogger("vllm.slot_vllm")

# auto: compiled where that works, torch otherwise. compiled: it is an error where it does not.
VARIABLE = "SLOT_CPU_KERNELS"
CHOICES = ("auto", "compiled", "torch")

_SOURCE = Path(__file__).with_name("cpu.cpp")
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
_DTYPES = (torch.bfloat16, torch.float32)


class _Address:
    """Takes a tensor, which lives until the call returns, or None."""

    @staticmethod
    def from_param(tensor: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


_POINTER, _INT, _LONG, _FLOAT = _Address, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_MATRIX = (_POINTER, _INT, _LONG, _LONG)
_SIGNATURES = {
    "slot_shift": (*_MATRIX, _LONG, _POINTER, _LONG, _POINTER, _LONG, _INT),
    "slot_pull_back": (*_MATRIX, _LONG, _POINTER, _LONG, _LONG, _POINTER, _INT),
    "slot_exponentials": (
        *(*_MATRIX, _POINTER, _FLOAT, _POINTER, _LONG, _POINTER, _LONG, _LONG, _POINTER),
        *(_FLOAT, _POINTER, _POINTER, _POINTER, _INT),
    ),
    "slot_exponential_sums": (*_MATRIX, _POINTER, _FLOAT, _POINTER, _POINTER, _INT),
}


class CompilationError(RuntimeError):
    """No compiler, or one that refuses ``cpu.cpp``."""


def library_for(matrix: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels if they serve ``matrix``: bf16 or float32 rows on the CPU."""
    if (
        matrix.device.type != "cpu"
        or matrix.dtype not in _DTYPES
        or matrix.stride(-1) != 1
        or not matrix.numel()
    ):
        return None
    return library(os.environ.get(VARIABLE, "auto"))


@functools.cache
def library(choice: str = "auto") -> ctypes.CDLL | None:
    """The compiled kernels, or None where torch's are used. Says which in one line of the log.

    Raises CompilationError for the choice ``compiled`` where they cannot be had, ValueError for an
    unknown choice.
    """
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!r}: allowed: {', '.join(CHOICES)}")
    if choice == "torch":
        logger.info("SLOT: CPU kernels: torch, as %s says", VARIABLE)
        return None
    try:
        path = build()
        loaded = ctypes.CDLL(str(path))
    except (CompilationError, OSError) as error:
        if choice == "compiled":
            raise CompilationError(str(error)) from error
        logger.warning("SLOT: CPU kernels: torch, about half as fast; compiling failed: %s", error)
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = signature, None
    logger.info("SLOT: CPU kernels: compiled, %s", path)
    return loaded


def build() -> Path:
    """Compile ``cpu.cpp`` unless that was done before. Raises CompilationError."""
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))][:1]
    )
    if not compiler:
        raise CompilationError("no C++ compiler (CXX, g++, clang++ or c++)")
    # What -march=native means depends on the processor.
    described, keys = processor.described(), ("model name", "flags", "Features", "CPU part")
    own = [platform.machine(), *(described.get(key, "") for key in keys)]
    parts = [_SOURCE.read_text(), *compiler, *_FLAGS, _run([*compiler, "--version"]), *own]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = _cache() / f"cpu-{name}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / path.name
            _run([*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)])
            made.replace(path)
    except OSError as error:
        raise CompilationError(f"{path.parent}: {error}") from error
    return path


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise CompilationError(f"{command[0]}: {(done.stderr.strip() or 'failed')[-2000:]}")
    return done.stdout


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "slot_vllm"
    except RuntimeError as error:
        raise CompilationError(f"nowhere to keep the library: {error}") from error


def strided(matrix: Tensor) -> tuple[Tensor, bool, int, int, int]:
    """A matrix of contiguous rows, as ``slot_shift`` and ``slot_pull_back`` take W."""
    return matrix, matrix.dtype == torch.bfloat16, matrix.stride(0), *matrix.shape
