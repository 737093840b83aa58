"""N-gram drafts: each draft row gets its own request's delta.

In a process of its own, because after an n-gram engine vLLM cannot start another one in the same
process (its Triton kernel overrides stumble over numba's objects).
"""

from collections.abc import Callable
from typing import Any

from tests.engine.cases import Case, assert_tokens_equal, random_tokens, reference
from tests.engine.conftest import V2, runner_of
from tests.engine.generate import run, tokens_of

NEW = 8 if V2 else 24


def test_ngram_speculation(tiny_model: str, engine: Callable[..., Any]) -> None:
    # Prompts that repeat, so that drafts are found.
    cases = [
        Case(random_tokens(9, seed=20 + i) * 4, steps, lr, NEW)
        for i, (steps, lr) in enumerate(((5, 0.1), (0, 0.1), (3, 0.5), (5, 1.0)))
    ]
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
    )
    runner = runner_of(llm)
    drafted, original = [], runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        drafted.append(len(scheduler_output.scheduled_spec_decode_tokens))
        return original(scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model
    outputs = run(llm, cases)
    assert sum(drafted)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, cases))
