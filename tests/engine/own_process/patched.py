"""For a patched vLLM: SLOT works, and no runner and no logits processor is wrapped."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from slot_vllm.engine.worker import linear_head
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import runner_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of

NEW = 6
STEP_METHODS = ("execute_model", "sample", "_prepare_inputs", "_model_forward")


def test_nothing_of_a_step_is_wrapped(tiny_model: str, engine: Callable[..., Any]) -> None:
    runner = runner_of(engine(tiny_model, slot={}))
    assert runner.slot_hook is not None
    assert not set(STEP_METHODS) & vars(runner).keys()
    processor = runner.model.logits_processor
    assert processor.slot_hook is not None and "forward" not in vars(processor)
    plain = runner_of(engine(tiny_model))
    assert plain.slot_hook is None
    assert getattr(plain.model.logits_processor, "slot_hook", None) is None


def test_tokens_and_deltas(tiny_model: str, engine: Callable[..., Any]) -> None:
    settings = ((5, 0.5), (0, 0.1), (3, 0.1))
    cases = [
        Case(random_tokens(n, seed=3000 + n), *settings[i % 3], NEW)
        for i, n in enumerate((1, 33, 70, 9, 50, 100))
    ]
    expected = reference(tiny_model, cases)
    llm = engine(tiny_model, slot={})
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    # Read back from the KV cache.
    llm.collective_rpc("slot_forget_shared")
    again = run(llm, cases)
    assert tokens_of(again) == tokens_of(outputs)
    assert stats_of(llm)["hidden_rows_cached"] > 0


def test_the_published_rounding(tiny_model: str, engine: Callable[..., Any]) -> None:
    case = Case(random_tokens(60, seed=51), 5, 0.1, NEW)
    params = sampling_params(case)
    params.extra_args = {**params.extra_args, "slot_rounding": "model"}
    prompt = {"prompt_token_ids": list(case.tokens)}
    outputs = engine(tiny_model, slot={}).generate([prompt], [params], use_tqdm=False)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case]))


def test_failures_are_contained(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={})
    case = Case(random_tokens(30, seed=79), 5, 0.1, NEW)

    def fail(*args: Any) -> Any:
        raise RuntimeError("on purpose")

    failed = stats_of(llm).get("failed.logits", 0), stats_of(llm).get("failed.arrival", 0)
    with monkeypatch.context() as patch:
        patch.setattr(linear_head, "add_bias_rows", fail)
        outputs = run(llm, [case])
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [replace(case, steps=0)]))
    assert stats_of(llm)["failed.logits"] == failed[0] + 1
    with monkeypatch.context() as patch:
        patch.setattr(runner_of(llm).slot_state.registry, "_arrive", fail)
        run(llm, [replace(case, tokens=case.tokens[1:])])
    assert stats_of(llm)["failed.arrival"] == failed[1] + 1
    again = replace(case, tokens=case.tokens[2:])
    assert_tokens_equal(tokens_of(run(llm, [again])), reference(tiny_model, [again]))
