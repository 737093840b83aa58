"""Nothing of a request reaches another one: memory that is not in use holds what would show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.cases import Case, random_tokens
from tests.engine.engines import runner_of
from tests.engine.generate import run, sampling_params, stats_of
from tests.engine.runner import V2
from tests.engine.unloaded import tokens_and_logprobs

NEW = 3 if V2 else 10
ROOMY = {"num_gpu_blocks_override": 60}
CASES = [
    Case(random_tokens(n, seed=7000 + n), steps, 0.5, NEW)
    for n, steps in ((100, 5), (20, 0), (9, 3), (40, 5), (70, 1), (3, 0), (1, 5), (33, 2))
]


def _fresh(llm: Any) -> None:
    llm.reset_prefix_cache()
    llm.collective_rpc("slot_forget_shared")


def _poison(slot: Any, value: float) -> None:
    """All of our memory that no request has at this moment."""
    slot.workspace._bytes.view(torch.float32).fill_(value)
    free = slot.table._free
    slot.table.biases[free] = value
    slot.table.rounded[free] = value
    slot.sharing.cache._deltas[slot.sharing.cache._free] = value


def _poisoned(llm: Any, patch: pytest.MonkeyPatch, value: float) -> None:
    runner = runner_of(llm)
    slot, cache = runner.slot_state, runner.slot_hidden_cache
    if cache is not None:
        # No request is running: all blocks are free.
        cache._layer.kv_cache.fill_(value)
    stage, allocate = slot.step.stage, slot.buffers.allocate

    def poisoned_stage(*args: Any) -> None:
        _poison(slot, value)
        stage(*args)
        # What was staged is in the table, and nowhere else.
        slot.workspace._bytes.view(torch.float32).fill_(value)

    def poisoned_buffer(*args: Any) -> Any:
        return allocate(*args).fill_(value)

    patch.setattr(slot.step, "stage", poisoned_stage)
    patch.setattr(slot.buffers, "allocate", poisoned_buffer)


@pytest.mark.parametrize("hidden_cache", ["on", "off"])
@pytest.mark.parametrize("rounding", ["exact"] if V2 else ["exact", "model"])
def test_what_memory_held_before_does_not_matter(
    rounding: str,
    hidden_cache: str,
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = engine(tiny_model, slot={"hidden_cache": hidden_cache, "rounding": rounding}, **ROOMY)
    _fresh(llm)
    before = stats_of(llm)
    expected = tokens_and_logprobs(run(llm, CASES, logprobs=5))
    assert stats_of(llm)["optimized"] == before["optimized"] + 5
    for value in (torch.nan, 1e30):
        _fresh(llm)
        with monkeypatch.context() as patch:
            _poisoned(llm, patch, value)
            assert tokens_and_logprobs(run(llm, CASES, logprobs=5)) == expected
    # Blocks that others had used, with sound values in them, are as good.
    _fresh(llm)
    run(llm, [Case(random_tokens(200, seed=7500 + i), 5, 1.0, 1) for i in range(4)])
    _fresh(llm)
    assert tokens_and_logprobs(run(llm, CASES, logprobs=5)) == expected
    assert stats_of(llm)["failed"] == before["failed"], llm.collective_rpc("slot_errors")


def test_a_slots_next_request_gets_nothing_of_the_one_before(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={}, max_num_seqs=1, **ROOMY)
    _, plain, adapted, *_ = CASES
    _fresh(llm)
    alone = [tokens_and_logprobs(run(llm, [case], logprobs=5)) for case in (plain, adapted)]
    slot = runner_of(llm).slot_state
    rows = set()
    for case, expected in zip((plain, adapted), alone, strict=True):
        _fresh(llm)
        strong = Case(random_tokens(50, seed=7600), 10, 1.0, NEW)
        run(llm, [strong])
        rows.update(slot.table._rows.values())
        assert slot.table.biases[1].any()
        assert tokens_and_logprobs(run(llm, [case], logprobs=5)) == expected
    # All of them had the one row that there is.
    assert rows == {1}


@pytest.mark.any_runner
def test_deltas_are_read_only_where_they_are_kept(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={"keep_deltas": 0}, **ROOMY)
    core, case = llm.llm_engine, CASES[3]
    prompt = {"prompt_token_ids": list(case.tokens)}
    core.add_request("mine", prompt, sampling_params(case))
    while core.has_unfinished_requests():
        core.step()
        for method in ("slot_delta", "slot_losses", "slot_token_shifts"):
            assert llm.collective_rpc(method, args=("mine",)) == [None]
    assert stats_of(llm)["optimized"] == 1
    run(llm, [CASES[5]])
    assert llm.collective_rpc("slot_delta", args=("mine",)) == [None]
    assert not runner_of(llm).slot_state.registry.kept
