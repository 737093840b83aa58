"""A request does not depend on its neighbours, and requests without SLOT are untouched."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.engine.cases import Case, assert_tokens_equal, random_tokens, reference
from tests.engine.engines import runner_of
from tests.engine.generate import delta_of, run, stats_of, tokens_of
from tests.engine.runner import V2
from tests.engine.unloaded import Bits, run_unloaded, tokens_and_logprobs

NEW = 8 if V2 else 24


def _neighbours(steps: int, lr: float, seed: int) -> list[Case]:
    return [Case(random_tokens(n, seed + n), steps, lr, NEW) for n in (5, 40, 90, 150)]


@pytest.mark.parametrize(
    "neighbours",
    [_neighbours(5, 1.0, 100), _neighbours(10, 0.001, 200), _neighbours(0, 0.1, 300)],
    ids=["strong", "weak", "without"],
)
def test_alone_and_in_company(
    neighbours: list[Case], tiny_model: str, engine: Callable[..., Any]
) -> None:
    mine = Case(random_tokens(70, seed=7), 5, 0.1, NEW)
    llm = engine(tiny_model, slot={})
    (alone,) = run(llm, [mine])
    delta_alone = delta_of(llm, alone)
    together = run(llm, [*neighbours[:2], mine, *neighbours[2:]])[2]
    delta_together = delta_of(llm, together)
    assert delta_alone is not None and delta_together is not None
    assert max(abs(a - b) for a, b in zip(delta_alone, delta_together, strict=True)) <= 2e-5
    expected = reference(tiny_model, [mine])
    assert_tokens_equal(tokens_of([alone]), expected)
    assert_tokens_equal(tokens_of([together]), expected)


MIXED = [
    Case(random_tokens(n, seed=400 + n), 5 * (i % 2), 0.5, NEW)
    for i, n in enumerate((3, 20, 60, 61, 120, 33))
]
WITHOUT = [Case(c.tokens, 0, c.lr, c.new_tokens) for c in MIXED]
# The schedules, and so the shapes of all products, are the same: no cache, no preemption.
OPTIONS = {
    dtype: {"dtype": dtype, "num_gpu_blocks_override": 200, "enable_prefix_caching": False}
    for dtype in ("float32", "bfloat16")
}


@cache
def _unloaded(model: str) -> dict[str, Bits]:
    """By the dtype, of one process for both."""
    return dict(zip(OPTIONS, run_unloaded(model, WITHOUT, list(OPTIONS.values())), strict=True))


@pytest.mark.parametrize("dtype", OPTIONS)
def test_without_steps_bits_are_those_of_vllm_without_the_plugin(
    dtype: str, tiny_models: Callable[[str, bool], str], engine: Callable[..., Any]
) -> None:
    # Gemma2's soft cap is where a change of dtype would show.
    model = tiny_models("gemma2", True)
    unloaded = _unloaded(model)[dtype]
    slot = engine(model, slot={}, **OPTIONS[dtype])
    before = stats_of(slot)["optimized"]
    assert tokens_and_logprobs(run(slot, WITHOUT, logprobs=5)) == unloaded
    assert stats_of(slot)["optimized"] == before

    on = tokens_and_logprobs(run(slot, MIXED, logprobs=5))
    assert stats_of(slot)["optimized"] == before + 3
    for case, with_slot, own in zip(MIXED, on, unloaded, strict=True):
        assert (with_slot == own) == (case.steps == 0)


def test_nothing_is_left_of_finished_requests(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})
    run(llm, _neighbours(5, 0.1, 500))
    # Departures reach the worker with the next step.
    run(llm, [Case(random_tokens(4, seed=1), 0, 0.1, 1)])
    state = runner_of(llm).slot_state
    assert not state.registry.with_slot
    assert len(state.table) == 0
    assert state.buffers.device_bytes == state.buffers.host_bytes == 0
    stats = stats_of(llm)
    assert stats["failed"] == 0, llm.collective_rpc("slot_errors")
    assert stats["kept_deltas"] <= 64
