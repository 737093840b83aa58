"""The counts of docs/scaling.md, and that they are what happens among threads;
tests/engine/own_process/parallel.py counts what passes through vLLM's group."""

from itertools import pairwise
from pathlib import Path

import pytest

from slot_vllm.bench.scaling import ModelShape, learning, prefill
from slot_vllm.params import SlotParams
from tests.optim.test_optimize import make_head, make_prompt
from tests.optim.test_shard import Group, on_ranks

# Llama 3's, without the embeddings, which no token is multiplied with.
LLAMA_70B = ModelShape(8192, 128256, 80, 69_501_714_432, itemsize=2)
SCALING = Path(__file__).parents[2] / "docs/scaling.md"


@pytest.mark.parametrize("bounds", [[0, 128, 211], [0, 64, 128, 192, 211]])
@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (40, 5)])
def test_what_the_ranks_of_a_small_head_exchange(bounds: list[int], rows: int, steps: int) -> None:
    head, ranks = make_head(bounds[-1], 32), len(list(pairwise(bounds)))
    group = Group(ranks)
    prompt = make_prompt(head, rows + 1, SlotParams(steps=steps))
    on_ranks(group, head, [prompt], bounds, 1 << 20, final_loss=False)
    counted = learning(ModelShape(32, bounds[-1], 1, 0, itemsize=4), ranks, rows, steps)
    assert counted.collectives == len(group.shapes)
    assert counted.received == (ranks - 1) * group.bytes_given


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_documented_table(tokens: int) -> None:
    own, forward = learning(LLAMA_70B, 8, tokens, 5), prefill(LLAMA_70B, 8, tokens)
    cells = [
        f"{tokens}",
        f"{own.collectives} / {forward.collectives}",
        f"{own.received / 1e6:.2f} MB / {forward.received / 1e9:.2f} GB",
        f"{100 * own.received / forward.received:.3f} %",
        f"{own.operations / 1e12:.3f} / {forward.operations / 1e12:.2f}",
        f"{100 * own.operations / forward.operations:.1f} %",
        f"{own.memory / 1e9:.2f} / {forward.memory / 1e9:.1f}",
    ]
    assert f"| {' | '.join(cells)} |" in SCALING.read_text(encoding="utf-8")
