"""N-gram drafts: each draft row gets its own request's delta, as much of it as its token gets.

The last of its process, because after an n-gram engine vLLM cannot start another one in the same
process (its Triton kernel overrides stumble over numba's objects).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.generate import delta_of, run, tokens_of

BLOCK = 32


def test_drafts_and_what_they_leave_in_the_prefix_cache(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    # Prompts that repeat, so that drafts are found. With their answers they fill two blocks.
    turns = [
        Case(random_tokens(9, seed=20 + i) * 5, steps, lr, 2 * BLOCK - 45 + 8)
        for i, (steps, lr) in enumerate(((5, 0.1), (0, 0.1), (3, 0.5), (5, 1.0)))
    ]
    # The last one's prompt and delta.
    for settings in ((("window", 7),), (("half_life", 4.0),), (("window", 9), ("half_life", 6.0))):
        turns.append(replace(turns[3], settings=settings))
    llm = engine(
        tiny_model,
        slot={},
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
        num_gpu_blocks_override=200,
        disable_log_stats=False,
    )
    outputs = run(llm, turns)
    counts: dict[str, Any] = {
        metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()
    }
    accepted = counts["vllm:spec_decode_num_accepted_tokens"]
    assert 0 < accepted < counts["vllm:spec_decode_num_draft_tokens"]
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, turns))

    # The block that was generated held hidden states of rejected drafts in between.
    seconds = [
        Case(turn.tokens + tuple(said) + random_tokens(9, seed=30), 5, 0.1, 4)
        for turn, said in zip(turns, tokens_of(outputs), strict=True)
    ]
    outputs = run(llm, seconds)
    assert [o.num_cached_tokens for o in outputs] == [2 * BLOCK] * len(seconds)
    expected = reference(tiny_model, seconds)
    assert_tokens_equal(tokens_of(outputs), expected)
    for output, answer in zip(outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, 0.1)
