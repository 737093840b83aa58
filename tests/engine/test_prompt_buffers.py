import pytest
import torch

from slot_vllm.engine.worker import prompt_buffers
from slot_vllm.engine.worker.prompt_buffers import PromptBuffers


def test_a_cpu_keeps_all_and_counts() -> None:
    rows = PromptBuffers(0, torch.device("cpu"))
    buffer = rows.allocate(10, 4, torch.float32)
    assert rows.device_bytes == 160
    rows.release(buffer)
    assert rows.device_bytes == 0


def test_beyond_the_limit_a_device_spills_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def without_pinning(*args: object, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        return empty(*args, **kwargs)  # type: ignore[call-overload]

    # Pinning needs CUDA; the meta device stands for one.
    monkeypatch.setattr(prompt_buffers.torch, "empty", without_pinning)
    rows = PromptBuffers(200, torch.device("meta"))
    first, second = (rows.allocate(10, 4, torch.float32) for _ in range(2))
    assert (first.device.type, second.device.type) == ("meta", "cpu")
    assert (rows.device_bytes, rows.host_bytes) == (160, 160)
    rows.release(second)
    rows.release(first)
    assert (rows.device_bytes, rows.host_bytes) == (0, 0)
    assert rows.allocate(10, 4, torch.float32).device.type == "meta"
