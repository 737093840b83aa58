"""Rows of the hidden-state layer, without an engine."""

from types import SimpleNamespace

import pytest
import torch

from slot_vllm.engine.worker.hidden_cache import HiddenCache

BLOCKS, BLOCK, SIZE = 6, 32, 5


@pytest.mark.parametrize("kernel_block", [32, 16, 8])
def test_rows_are_found_where_a_kernel_sees_smaller_blocks(kernel_block: int) -> None:
    cache = HiddenCache.__new__(HiddenCache)
    shape = (BLOCKS * BLOCK // kernel_block, 1, kernel_block, SIZE)
    cache._layer = SimpleNamespace(kv_cache=torch.zeros(shape))  # type: ignore[assignment]
    cache._slice = slice(None)
    hidden = torch.randn(70, SIZE)
    blocks = torch.tensor([4, 1, 3], dtype=torch.int32)
    positions = torch.arange(len(hidden))
    slots = blocks[positions // BLOCK].long() * BLOCK + positions % BLOCK
    # In two steps, and with rows that belong nowhere.
    cache.write(hidden[:40], slots[:40])
    padded = torch.cat([hidden[40:], torch.full((2, SIZE), 7.0)])
    cache.write(padded, torch.cat([slots[40:], torch.tensor([-1, -1])]))
    assert torch.equal(cache.read(blocks, BLOCK, 0, len(hidden)), hidden)
    assert torch.equal(cache.read(blocks, BLOCK, 30, 66), hidden[30:66])
    # But in the first block, which vLLM gives to nobody.
    assert not (cache._layer.kv_cache[BLOCK // kernel_block :] == 7).any()
