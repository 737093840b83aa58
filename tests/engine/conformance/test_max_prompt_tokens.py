"""Prompts beyond ``max_prompt_tokens``: learned from their last tokens, or served without SLOT."""

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
from tests.engine.engines import ROOMY, runner_of, scheduler_of
from tests.engine.generate import delta_of, run, stats_of, tokens_of
from tests.engine.runner import V2

LAST = 50
SLOT = {"max_prompt_tokens": LAST, "long_prompts": "last"}
NEW = 4 if V2 else 16


def _of_their_end(cases: list[Case]) -> list[Case]:
    return [Case(c.tokens, c.steps, c.lr, c.new_tokens, last=LAST) for c in cases]


@pytest.mark.parametrize("hidden_cache", ["on", "off"])
def test_the_last_tokens_are_learned_from(
    hidden_cache: str,
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Chunks of 48: prompts of 64 tokens and more are split, some of them within their end.
    llm = engine(tiny_model, slot={**SLOT, "hidden_cache": hidden_cache})
    scheduler, runner = scheduler_of(llm), runner_of(llm)
    preempted, original = [], scheduler._preempt_request
    pending = 0

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request)
        return original(request, *args, **kwargs)

    allocate = runner.slot_state.buffers.allocate

    def watched(rows: int, *args: Any) -> Any:
        nonlocal pending
        pending = max(pending, rows)
        return allocate(rows, *args)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    monkeypatch.setattr(runner.slot_state.buffers, "allocate", watched)
    cases = _of_their_end(mixed_cases(16, NEW) if V2 else mixed_cases(24, 32))
    expected = reference(tiny_model, cases)
    outputs = run(llm, cases)
    assert V2 or any(request.sampling_params.extra_args["slot_steps"] for request in preempted)
    assert pending == (LAST if hidden_cache == "off" else 0)
    assert_tokens_equal(tokens_of(outputs), expected)
    learned = 0
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
            learned += min(len(case.tokens), LAST)
    stats = stats_of(llm)
    assert (stats["prompt_tokens"], stats["failed"]) == (learned, 0)
    assert stats["pending_device_bytes"] == 0


def test_prefixes_of_every_length_in_the_cache(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot=SLOT, **ROOMY)
    # The hit ends before the last 50 tokens, among them, and one before the prompt's end.
    tokens = random_tokens(129, 5000)
    prompts = [tokens[:110], tokens[:97], tokens[:64] + random_tokens(60, 5001), tokens]
    cases = _of_their_end([Case(prompt, 3, 0.5, NEW) for prompt in prompts])
    expected = reference(tiny_model, cases)
    run(llm, [Case(tokens, 0, 0.1, 1)])
    outputs = [run(llm, [case])[0] for case in cases]
    assert [output.num_cached_tokens for output in outputs] == [96, 96, 64, 128]
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, case.lr)


@pytest.mark.any_runner
def test_equal_ends_are_not_equal_prompts(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot=SLOT, **ROOMY)
    before = stats_of(llm)
    end = random_tokens(LAST, 5100)
    starts = [random_tokens(20, 5101), random_tokens(20, 5102)]
    cases = _of_their_end([Case(start + end, 5, 0.1, NEW) for start in [*starts, starts[0]]])
    expected = reference(tiny_model, cases)
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, case.lr)
    stats = stats_of(llm)
    assert stats["optimized"] - before["optimized"] == 2
    assert stats["shared"] - before["shared"] == 1


@pytest.mark.any_runner
def test_of_the_last_tokens_those_that_count(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot=SLOT, skip_tokenizer_init=False, **ROOMY)
    special = sorted(llm.get_tokenizer().added_tokens_decoder)
    tokens = list(random_tokens(90, 5300))
    # Before the last ones, and among them.
    for i in (3, 20, 60, 75, 76):
        tokens[i] = special[0]
    nothing = [*tokens[:-LAST], *[special[0]] * LAST]
    cases = [
        Case(
            tuple(prompt),
            5,
            0.1,
            NEW,
            last=LAST,
            settings=(("loss_tokens", wanted),),
            # The last tokens count whatever they are.
            counts=tuple(t not in special for t in prompt) if wanted == "text" else None,
        )
        for prompt, wanted in (
            (tokens, "text"),
            (tokens, 20),
            (tokens, LAST + 10),
            (nothing, "text"),
        )
    ]
    expected = reference(tiny_model, cases)
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, case.lr)
    assert [any(answer.delta) for answer in expected] == [True, True, True, False]
    stats = stats_of(llm)
    assert (stats["optimized"], stats["one_token"], stats["failed"]) == (3, 1, 0)


@pytest.mark.any_runner
def test_refused(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm = engine(tiny_model, slot={"max_prompt_tokens": LAST}, **ROOMY)
    long, short = (Case(random_tokens(n, 5200), 5, 0.1, NEW) for n in (LAST + 1, LAST))
    with pytest.raises(VLLMValidationError, match=f"long_prompt; .* max_prompt_tokens={LAST}"):
        run(llm, [long])
    assert not llm.llm_engine.has_unfinished_requests()
    # With SLOT from the engine's defaults only.
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": list(case.tokens)} for case in (long, short)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    plain = Case(long.tokens, 0, 0.1, NEW)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [plain, short]))
    stats = stats_of(llm)
    assert (stats["bypassed.long_prompt"], stats["optimized"]) == (1, 1)
    (output,) = run(llm, [plain])
    assert delta_of(llm, output) is None
