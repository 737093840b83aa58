"""Every token and delta equals plain transformers, chunked and preempted."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    random_tokens,
    reference,
)
from tests.engine.engines import scheduler_of
from tests.engine.generate import delta_of, run, stats_of, tokens_of
from tests.engine.runner import V2


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [
        ("qwen2", True),
        pytest.param("qwen2", False, marks=pytest.mark.any_runner),
        pytest.param("llama", False, marks=pytest.mark.any_runner),
        ("gemma2", True),
    ],
)
def test_tokens_and_deltas(
    architecture: str,
    tied: bool,
    tiny_models: Callable[[str, bool], str],
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models(architecture, tied)
    # The interpreter is slow: fewer and shorter answers, still chunked and preempted.
    cases = mixed_cases(16, 16) if V2 else mixed_cases(24, 32)
    expected = reference(model, cases)
    # Gemma2 keeps two tables of blocks, for its full and its sliding layers.
    llm = engine(model, slot={}, num_gpu_blocks_override=22 if architecture == "gemma2" else 14)
    scheduler = scheduler_of(llm)
    preempted, original = [], scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request)
        return original(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    outputs = run(llm, cases)
    assert any(request.sampling_params.extra_args["slot_steps"] for request in preempted)
    chunk = llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert max(len(case.tokens) for case in cases) > chunk
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
            (losses,) = llm.collective_rpc("slot_losses", args=(output.request_id,))
            assert losses == pytest.approx(answer.losses, rel=2e-4, abs=2e-4)
        else:
            assert delta_of(llm, output) is None


# Two requests with each prompt, which share its delta.
FADING: tuple[dict[str, Any], ...] = (
    {},
    {"window": 3},
    {"half_life": 2.0},
    {"window": 5, "half_life": 4.0},
    {"window": 4, "rounding": "model"},
    {"half_life": 3.0, "rounding": "model"},
    {"window": 1},
    {"half_life": 6.0},
)


def test_windows_and_half_lives(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some are preempted in their answers: they end in another block than their prompts.
    lengths = (60, 28, 61, 100)
    cases = [
        Case(random_tokens(lengths[i // 2], 950 + i // 2), 5, 1.0, 12, settings=(*own.items(),))
        for i, own in enumerate(FADING)
    ]
    cases.insert(3, Case(random_tokens(29, seed=960), 0, 0.1, 12))
    expected = reference(tiny_model, cases)
    answers = {case.settings: answer.tokens for case, answer in zip(cases, expected, strict=True)}
    for one, other in zip(FADING[::2], FADING[1::2], strict=True):
        assert answers[(*one.items(),)] != answers[(*other.items(),)]
    llm = engine(tiny_model, slot={})
    scheduler = scheduler_of(llm)
    preempted, original = [], scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        named = request.sampling_params.extra_args
        if "slot_window" in named or "slot_half_life" in named:
            preempted.append(request.num_output_tokens)
        return original(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    outputs = run(llm, cases)
    assert any(preempted)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    assert [stats_of(llm)[name] for name in ("optimized", "shared")] == [4, 4]
