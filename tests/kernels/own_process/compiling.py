"""The Triton kernels compiled, not run, for compute capability 9.0 as their launchers call them.

Triton brings the assembler along, so this needs no GPU.
"""

import functools
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from slot_vllm.kernels import backend
from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.adamw import AdamW
from slot_vllm.kernels.ragged import RaggedRows
from slot_vllm.kernels.triton import (
    adamw,
    apply_delta,
    column_sums,
    head_product,
    request_losses,
    row_statistics,
)
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED_LIMIT = 227 * 1024
PLAIN, CAPPED = Activation(), Activation(30.0, 0.5)

pytestmark = pytest.mark.skipif(
    not DISASSEMBLER.is_file(), reason="this Triton brings no CUDA tools along"
)

Compiled = dict[str, list[Any]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiled:
    """What was compiled, by kernel; launching only compiles."""
    kernels: Compiled = {}

    def launch(self: Any, grid: tuple[int, ...]) -> Any:
        assert all(size > 0 for size in grid) and all(size < 1 << 16 for size in grid[1:])

        def compile_only(*args: Any, **options: Any) -> None:
            kernel = self.run(*args, grid=grid, warmup=True, **options)
            seen = kernels.setdefault(self.__name__, [])
            if not any(kernel is k for k in seen):
                seen.append(kernel)

        return compile_only

    hopper = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "__getitem__", launch)
    driver.set_active(hopper)
    return kernels


def resources(kernel: Any, path: Path) -> tuple[int, int, str]:
    """Registers per thread, bytes of stack, and the machine code."""
    path.write_bytes(kernel.asm["cubin"])
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    usage = run([DISASSEMBLER, "-res-usage", path]).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2]), run([DISASSEMBLER, "-sass", path]).stdout


def launch_all(
    lengths: list[int],
    vocabulary: int,
    hidden_size: int,
    dtype: torch.dtype,
    f: Activation,
    shifted: bool,
) -> None:
    """All kernels of one pass over tensors that are not there."""
    empty = functools.partial(torch.empty, device="meta")
    total = sum(lengths)
    part = RaggedRows(lengths, torch.zeros(total, dtype=torch.int64)).part(0, total)
    logits = empty(total, vocabulary, dtype=dtype)
    shifts = empty(len(lengths), vocabulary) if shifted else None
    weight = empty(vocabulary, hidden_size, dtype=dtype)
    hidden = empty(total, hidden_size, dtype=dtype)
    head_product.head_product(hidden, weight, None, shifts, part, f, logits)
    partials = row_statistics.row_partials(logits, shifts, part, f)
    lse, targets = row_statistics.finish_rows(*partials, logits, shifts, part, f)
    column_sums.add_column_sums(
        logits, shifts, lse, part, f, empty(len(lengths), vocabulary), first_token=0
    )
    request_losses.add_request_losses(
        lse, targets, part, empty(len(lengths), 6, dtype=torch.float64)[:, 2]
    )


def check(compiled: Compiled, tmp_path: Path, aligned: bool = True) -> dict[str, list[str]]:
    """Shared memory within bounds and, where rows begin at multiples of 16 elements, hardly
    a spilled register; the machine code by kernel."""
    code: dict[str, list[str]] = {}
    for name, kernels in compiled.items():
        for kernel in kernels:
            registers, stack, sass = resources(kernel, tmp_path / "kernel.cubin")
            assert stack <= 16 or not aligned, (name, registers, stack)
            assert kernel.metadata.shared <= SHARED_LIMIT, (name, kernel.metadata.shared)
            code.setdefault(name, []).append(sass)
    return code


def test_qwen_7b_with_512_rows(compiled: Compiled, tmp_path: Path) -> None:
    launch_all([512], 152064, 3584, torch.bfloat16, PLAIN, shifted=False)
    launch_all([512], 152064, 3584, torch.bfloat16, PLAIN, shifted=True)
    state = AdamW.at_zero(torch.empty(1, 6, device="meta")[:, :5], 3584)
    for step in (1, 2, 16):
        adamw.adamw_step(torch.empty(1, 3584, device="meta"), state, step)
    table = torch.empty(65, 152064, device="meta")
    rows = torch.empty(64, dtype=torch.int64, device="meta")
    for factors in (None, torch.empty(64, device="meta")):
        apply_delta.add_bias_rows(torch.empty(64, 152064, device="meta"), table, rows, factors)
    code = check(compiled, tmp_path)
    assert all("HGMMA" in sass for sass in code["_head_product"])
    # Tiles of logits come by asynchronous copies, several at a time.
    assert all("LDGSTS" in sass for sass in code["_add_column_sums"])
    assert not any(re.search(r"\b(ATOMG|RED)\b", s) for kernel in code.values() for s in kernel)
    # The number of the step, of the rows and the like compile nothing anew.
    assert len(compiled["_adamw_step"]) == 1


@pytest.mark.parametrize(
    ("capability", "shared_memory"),
    [
        (89, 99 << 10),
        pytest.param(80, 163 << 10, marks=pytest.mark.full),
        pytest.param(120, 99 << 10, marks=pytest.mark.full),
    ],
)
def test_the_product_fits_smaller_devices(
    compiled: Compiled, capability: int, shared_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = GPUTarget("cuda", capability, 32)
    monkeypatch.setattr(driver.active, "get_current_target", lambda: target)
    # Triton remembers the target of each device.
    monkeypatch.setattr(driver.active, "get_current_device", lambda: capability)
    monkeypatch.setattr(head_product, "shared_memory_of", lambda device: shared_memory)
    launch_all([512], 152064, 3584, torch.bfloat16, PLAIN, shifted=False)
    for name, kernels in compiled.items():
        assert all(k.metadata.shared <= shared_memory for k in kernels), name


@pytest.mark.full
@pytest.mark.parametrize(
    ("vocabulary", "hidden_size", "dtype"),
    [
        (152064, 3584, torch.bfloat16),
        (128256, 8192, torch.bfloat16),
        (151936, 896, torch.float16),
        (152064, 1536, torch.float32),
        (50257, 768, torch.bfloat16),
        (16, 50, torch.float16),
    ],
)
@pytest.mark.parametrize("f", [PLAIN, CAPPED])
def test_every_block_size(
    compiled: Compiled,
    tmp_path: Path,
    f: Activation,
    vocabulary: int,
    hidden_size: int,
    dtype: torch.dtype,
) -> None:
    for lengths in ([1], [3], [17], [33], [4096], [20] * 64):
        for shifted in (False, True):
            launch_all(lengths, vocabulary, hidden_size, dtype, f, shifted)
    check(compiled, tmp_path, aligned=vocabulary % 16 == hidden_size % 16 == 0)
    # Bounded by the block sizes, whatever the lengths: what a server may have to compile.
    limits = {"_head_product": 8, "_row_partials": 4, "_add_column_sums": 12}
    for name, kernels in compiled.items():
        assert len(kernels) <= limits.get(name, 2), (name, len(kernels))


@pytest.mark.parametrize("lengths", [[400], [7] * 40])
def test_a_step_reads_nothing_back_and_its_launches_do_not_grow_with_the_prompts(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values: what would wait for the device raises.

    The compiled CPU kernels read memory, and these tensors have none.
    """
    monkeypatch.setenv("SLOT_CPU_KERNELS", "torch")
    launches: list[str] = []
    monkeypatch.setattr(backend, "uses_triton", lambda tensor: True)
    monkeypatch.setattr(
        JITFunction,
        "__getitem__",
        lambda self, grid: lambda *a, **k: launches.append(self.__name__),
    )
    steps = 4
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = Head(torch.empty(1000, 64, dtype=torch.bfloat16))
        prompts = [
            Prompt(
                torch.empty(n, 64, dtype=torch.bfloat16),
                torch.zeros(n, dtype=torch.int64),
                SlotParams(steps=steps),
            )
            for n in lengths
        ]
        learned = optimize(head, prompts, Workspace(4 << 20))
        with pytest.raises(DataDependentOutputException):
            learned[0].delta.sum().item()
    assert Counter(launches) == {
        "_head_product": 1,
        "_row_partials": steps - 1,
        "_finish_rows": steps,
        "_add_column_sums": steps,
        "_add_request_losses": steps,
        "_adamw_step": steps,
    }
