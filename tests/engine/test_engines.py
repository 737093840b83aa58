"""Tests that share an engine do not meet one another in it."""

import pytest
import torch

from tests.engine.cases import Case, random_tokens
from tests.engine.engines import Engines, assert_nothing_left, begin_test, deltas_of
from tests.engine.generate import run, sampling_params, stats_of

CASE = Case(random_tokens(40, seed=1), 2, 0.1, 3)


def test_equal_calls_get_the_same_engine_and_each_test_finds_it_new(
    engines: Engines, tiny_model: str
) -> None:
    llm = engines.get(tiny_model, {})
    assert engines.get(tiny_model, slot={}) is llm
    assert engines.get(tiny_model) is not llm
    for _ in range(2):
        begin_test(llm)
        assert stats_of(llm)["optimized"] == 0
        (output,) = run(llm, [CASE])
        # Neither the delta nor the prefix of the last time.
        assert output.num_cached_tokens == 0
        assert [stats_of(llm)[name] for name in ("optimized", "shared")] == [1, 0]
    assert_nothing_left(llm)


def test_what_a_test_leaves_behind_is_an_error(engines: Engines, tiny_model: str) -> None:
    llm = engines.get(tiny_model, {})
    deltas = deltas_of(llm)
    llm.llm_engine.add_request(
        "left", {"prompt_token_ids": list(CASE.tokens)}, sampling_params(CASE)
    )
    llm.llm_engine.step()
    with pytest.raises(AssertionError, match="unfinished requests"):
        assert_nothing_left(llm)
    llm.llm_engine.abort_request(["left"])
    assert_nothing_left(llm)

    deltas.stage = deltas.stage.__func__.__get__(deltas)
    assert_nothing_left(llm)
    deltas.stage = lambda *args: None
    with pytest.raises(AssertionError, match=r"still replaced by the test: \['deltas\.stage'\]"):
        assert_nothing_left(llm)
    del deltas.stage

    deltas.table.assign("left", ())
    with pytest.raises(AssertionError, match="'table rows': 1"):
        assert_nothing_left(llm)
    deltas.table.remove("left")
    rows = deltas.pending.allocate(2, 4, torch.float32)
    with pytest.raises(AssertionError, match="'pending bytes': 32"):
        assert_nothing_left(llm)
    deltas.pending.release(rows)
    deltas.table.biases[0, 0] = 1
    with pytest.raises(AssertionError):
        assert_nothing_left(llm)
    deltas.table.biases[0, 0] = 0
    assert_nothing_left(llm)
