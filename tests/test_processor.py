from pathlib import Path

import pytest

from slot_vllm import processor
from slot_vllm.bench.machine import describe_machine
from slot_vllm.evaluation import results

TOLD = """processor\t: 0
model name\t: A Processor 9000
cpu family\t: 25
flags\t\t: fpu avx2 avx512f avx512_bf16_other amx_bf16

processor\t: 1
model name\t: Another
flags\t\t: avx512_bf16
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_INFORMATION", path)
    return path


def test_the_first_processor_is_told(told: Path) -> None:
    told.write_text(TOLD)
    assert processor.name() == "A Processor 9000"
    assert processor.instruction_sets() == ["amx_bf16", "avx512f", "avx2"]
    machine = results.machine()
    assert machine["processor"] == "A Processor 9000"
    assert machine["instruction_sets"] == ["amx_bf16", "avx512f", "avx2"]
    assert {"system", "architecture", "cpus", "accelerators"} < machine.keys()
    assert describe_machine("cpu")["processor"] == "model name A Processor 9000, cpu family 25"


@pytest.mark.parametrize("text", [None, "CPU part : 0xd0c\n"])
def test_what_the_system_does_not_tell_is_none(told: Path, text: str | None) -> None:
    if text is not None:
        told.write_text(text)
    assert processor.name() is None
    assert processor.instruction_sets() == []
    assert results.machine()["processor"] is None
    assert describe_machine("cpu")["processor"]
