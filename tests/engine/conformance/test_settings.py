"""Settings besides steps and lr, mixed in one batch, against plain transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.cases import (
    LENGTHS,
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import SMALL
from tests.engine.generate import delta_of, run, stats_of, tokens_of
from tests.engine.runner import V2

NEW = 6 if V2 else 16
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"loss_tokens": 20},
    {"reduction": "mean_over_rows"},
    {"preset": "paper-vllm"},
    {"weight_decay": 0.1, "eps": 1e-3},
)
# Of which every option learns something; most are longer than a step.
LONG = LENGTHS[3:]


def mixed(count: int) -> list[Case]:
    """Each option with prompts of several lengths; neighbours differ."""
    return [
        Case(
            random_tokens(LONG[(i + i // len(OPTIONS)) % len(LONG)], seed=40 + i),
            5,
            (0.05, 0.2, 1.0)[i % 3],
            NEW,
            settings=tuple(OPTIONS[i % len(OPTIONS)].items()),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "architecture", ["qwen2", pytest.param("gemma2", marks=pytest.mark.any_runner)]
)
def test_every_option_in_one_batch(
    architecture: str, tiny_models: Callable[[str, bool], str], engine: Callable[..., Any]
) -> None:
    model = tiny_models(architecture, True)
    # Split over steps and preempted.
    cases = mixed(10 if V2 else 20)
    cases += [
        replace(cases[i], tokens=random_tokens(length, seed=30 + i))
        for i, length in enumerate(LENGTHS[:3], start=1)
    ]
    expected = reference(model, cases)
    llm = engine(model, slot={}, num_gpu_blocks_override=22 if architecture == "gemma2" else 14)
    outputs = run(llm, cases)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if answer.losses:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
        else:  # nothing to learn from
            assert not any(delta_of(llm, output) or ())
        assert llm.collective_rpc("slot_scale", args=(output.request_id,)) == [1.0]
    assert_tokens_equal(tokens_of(outputs), expected)


@pytest.mark.any_runner
def test_without_a_delta_every_bit_is_the_baseline_s(
    tiny_models: Callable[[str, bool], str], engine: Callable[..., Any]
) -> None:
    """A soft cap in bf16: with a delta, f is taken in float32, which changes bits."""
    llm = engine(tiny_models("gemma2", True), slot={}, dtype="bfloat16", num_gpu_blocks_override=40)
    tokens = random_tokens(60, seed=3)
    cases = [Case(tokens, 0, 0.1, 12), Case(tokens, 5, 0.0, 12)]
    # Beside a request whose delta is applied.
    other = Case(random_tokens(50, seed=4), 5, 0.5, 12)
    plain, zero = (run(llm, [case, other], logprobs=20)[0] for case in cases)
    logprobs = [
        [
            {token: value.logprob for token, value in step.items()}
            for step in out.outputs[0].logprobs
        ]
        for out in (plain, zero)
    ]
    assert logprobs[0] == logprobs[1]
    free = Case(tokens, 5, 0.5, 12)
    (adapted,) = run(llm, [free], logprobs=20)
    first = {token: value.logprob for token, value in adapted.outputs[0].logprobs[0].items()}
    assert first != logprobs[0][0]


@pytest.mark.any_runner
def test_counters_and_equal_prompts(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})
    before = stats_of(llm)
    case = Case(random_tokens(40, seed=71), 5, 0.1, NEW)
    other = replace(case, lr=0.2)
    outputs = run(llm, [case, case, other])
    stats = stats_of(llm)
    counted = [stats[name] - before[name] for name in ("optimized", "shared")]
    assert counted == [2, 1] and stats["scaled"] == stats["vanished"] == 0
    assert tokens_of(outputs)[0] == tokens_of(outputs)[1]


@pytest.mark.any_runner
def test_tokens_that_only_the_tokenizer_can_tell(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    llm = engine(tiny_model, slot={}, skip_tokenizer_init=False)
    tokenizer = llm.get_tokenizer()
    cases = told_by(tokenizer)
    outputs = run(llm, cases)
    answers = reference(tiny_model, cases)
    assert_tokens_equal(tokens_of(outputs), answers)
    for output, answer in zip(outputs, answers, strict=True):
        error = (torch.tensor(delta_of(llm, output)) - torch.tensor(answer.delta)).abs().max()
        assert error <= 2e-4
    # What is no rendered chat has no user turn.
    words = tuple(tokenizer.encode("How many?", add_special_tokens=False))
    plain = Case(words, 5, 0.1, NEW, settings=(("loss_tokens", "user"),))
    with pytest.raises(VLLMValidationError, match=r"slot_loss_tokens='user': .*no user turn"):
        run(llm, [plain])
    params = SamplingParams(temperature=0, max_tokens=2)
    by_default = engine(tiny_model, slot={"loss_tokens": "user"}, skip_tokenizer_init=False)
    by_default.generate([{"prompt_token_ids": list(plain.tokens)}], params, use_tqdm=False)
    assert stats_of(by_default)["bypassed.loss_tokens"] == 1


def told_by(tokenizer: Any) -> list[Case]:
    """A chat longer than a step's tokens, learned from by roles and as text."""
    chat = [
        {"role": "system", "content": "Be brief, and count the apples."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes: 1."},
        {"role": "user", "content": "How many?"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    special = set(tokenizer.added_tokens_decoder)
    counted: dict[Any, list[bool]] = {"text": [token not in special for token in tokens]}
    for wanted in ("user", "assistant", ("assistant", "system")):
        counted[wanted] = [False] * len(tokens)
        for message in chat:
            if message["role"] in ((wanted,) if isinstance(wanted, str) else wanted):
                before = text[: text.index(message["content"])]
                start = len(tokenizer.encode(before, add_special_tokens=False))
                stop = start + len(message["content"])  # a token per character
                counted[wanted][start:stop] = [True] * (stop - start)
    assert len(tokens) > SMALL["max_num_batched_tokens"]
    return [
        Case(tokens, 5, 0.1, NEW, settings=(("loss_tokens", wanted),), counts=tuple(counts))
        for wanted, counts in counted.items()
    ]
