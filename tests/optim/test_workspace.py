"""How large the workspace is."""

import pytest
import torch

from slot_vllm.optim.workspace import choose_size

GIB = 1 << 30
MIB = 1 << 20


def test_what_is_set_is_taken_on_every_device() -> None:
    for device in ("cpu", "cuda"):
        size = choose_size(7, torch.device(device))
        assert (size.mb, size.bytes, size.reason) == (7, 7 * MIB, "as set")


def test_the_default_on_a_cpu() -> None:
    assert choose_size(None, torch.device("cpu")).mb == 512


@pytest.mark.parametrize(
    ("free", "mb"),
    [
        (0, 256),
        (12 * GIB, 256),
        (50 * GIB, 1024),
        (50 * GIB + 49 * MIB, 1024),
        (50 * GIB + 51 * MIB, 1025),
        (200 * GIB, 4096),
        (1000 * GIB, 4096),
    ],
)
def test_the_default_on_cuda_is_a_share_of_what_is_free(
    free: int, mb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    size = choose_size(None, torch.device("cuda"))
    assert size.mb == mb
    assert "2% of the " + str(free // MIB) + " MiB free" in size.reason
