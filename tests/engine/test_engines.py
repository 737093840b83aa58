"""Tests that share an engine do not meet one another in it."""

import inspect
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from slot_vllm.engine.worker.request import Status, TrackedRequest
from tests.engine import conftest
from tests.engine.cases import Case, random_tokens
from tests.engine.engines import (
    Engines,
    assert_nothing_left,
    begin_test,
    scheduler_of,
    state_of,
)
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


def test_an_engine_that_is_collected_ends_no_other(engines: Engines, tiny_model: str) -> None:
    kept, other = engines.get(tiny_model, {}), engines.get(tiny_model)
    finalizer = getattr(other.llm_engine.engine_core, "_finalizer", None)
    if finalizer is not None:  # what the garbage collector calls
        finalizer()
    run(kept, [CASE])


def test_no_further_test_gets_an_engine_in_which_something_is_left(tiny_model: str) -> None:
    engines = Engines()
    llm, other = engines.get(tiny_model, {}, seed=2), engines.get(tiny_model, seed=2)
    engines.check(llm)
    assert engines.get(tiny_model, {}, seed=2) is llm
    prompt = {"prompt_token_ids": list(CASE.tokens)}
    llm.llm_engine.add_request("left", prompt, sampling_params(CASE))
    with pytest.raises(AssertionError, match="unfinished requests"):
        engines.check(llm)
    assert engines.get(tiny_model, {}, seed=2) is not llm
    assert engines.get(tiny_model, seed=2) is other


def test_of_engines_with_processes_the_last_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def make(model: str, **options: Any) -> Any:
        inner = SimpleNamespace(model_executor=SimpleNamespace(), scheduler=SimpleNamespace())
        core = SimpleNamespace(engine_core=inner, shutdown=lambda: ended.append(model))
        return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))

    monkeypatch.setattr("vllm.LLM", make)
    engines = Engines()
    for name in "abcd":
        engines.get(name)
    assert not ended
    kept = engines.get("a")
    engines.get("e")
    assert ended == ["b"]
    assert engines.get("a") is kept
    engines.get("b")
    assert ended == ["b", "c"]
    engines.shut_down()
    assert sorted(ended[2:]) == ["a", "b", "d", "e"]


def _left_is_an_error(llm: Any, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        assert_nothing_left(llm)


def test_what_a_test_leaves_behind_is_an_error(engines: Engines, tiny_model: str) -> None:
    llm = engines.get(tiny_model, {})
    state = state_of(llm)
    llm.llm_engine.add_request(
        "left", {"prompt_token_ids": list(CASE.tokens)}, sampling_params(CASE)
    )
    llm.llm_engine.step()
    _left_is_an_error(llm, "unfinished requests")
    llm.llm_engine.abort_request(["left"])
    assert_nothing_left(llm)

    state.step.stage = state.step.stage.__func__.__get__(state.step)
    assert_nothing_left(llm)
    state.step.stage = lambda *args: None
    _left_is_an_error(llm, r"still replaced by the test: \['step\.stage'\]")
    del state.step.stage

    state.table.assign("left", ())
    _left_is_an_error(llm, "'table rows': 1")
    state.table.remove("left")
    rows = state.buffers.allocate(2, 4, torch.float32)
    _left_is_an_error(llm, "'pending bytes': 32")
    state.buffers.release(rows)
    for status in get_args(Status):
        state.registry.requests["left-1"] = TrackedRequest("left", status)
        _left_is_an_error(llm, rf"'{status}': \['left-1'\]")
        del state.registry.requests["left-1"]
    for name in ("biases", "rounded", "effective"):
        row = getattr(state.table, name)[0]
        row += 1
        _left_is_an_error(llm, "'row 0': True")
        row -= 1
    assert_nothing_left(llm)


def test_what_is_left_in_the_scheduler_is_an_error(engines: Engines, tiny_model: str) -> None:
    llm = engines.get(tiny_model, {"max_concurrent": 1})
    core, prompt = llm.llm_engine, {"prompt_token_ids": list(CASE.tokens)}
    core.add_request("kept", prompt, sampling_params(CASE))
    (request,) = scheduler_of(llm).requests.values()
    while core.has_unfinished_requests():
        core.step()
    _left_is_an_error(llm, "'scheduler': {'_completed': 1, '_learned': 1, '_prompts': 1}")
    # What only refers to itself is gone.
    request.itself = request
    del request
    assert_nothing_left(llm)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_fixture_looks_at_each_engine_that_a_test_had(
    place: int, engines: Engines, tiny_model: str
) -> None:
    test = inspect.unwrap(conftest.engine)(engines)
    engine = next(test)
    settings: list[dict[str, Any] | None] = [{}, None, {"max_concurrent": 1}]
    scheduler = scheduler_of([engine(tiny_model, slot) for slot in settings][place])
    scheduler.left = print
    with pytest.raises(AssertionError, match=r"still replaced by the test: \['scheduler\.left'\]"):
        next(test)
    del scheduler.left
