"""Tensor and pipeline parallel on two cores: what one process gives, whatever the workers.

In a process of its own, because vLLM reads what binds workers to cores when it is imported.
"""

import os

os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.cases import (
    VOCABULARY,
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    reference,
)
from tests.engine.conftest import SMALL
from tests.engine.generate import run, tokens_of

TP2: dict[str, Any] = {"tensor_parallel_size": 2}
PP2: dict[str, Any] = {"pipeline_parallel_size": 2, "enforce_eager": False}


def cases_of(vocabulary: int, count: int = 20, new_tokens: int = 16) -> list[Case]:
    return [
        replace(case, tokens=tuple(token % vocabulary for token in case.tokens))
        for case in mixed_cases(count, new_tokens)
    ]


@pytest.fixture
def parallel(engine: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """parallel(model, slot={}, **options): an engine of two workers."""

    def get(model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        slot = {"check_ranks": True, **(slot or {})}
        return engine(model, slot, distributed_executor_backend="mp", **options)

    yield get


def assert_equal_to_one_process(
    llm: Any, model: str, cases: list[Case], workers: list[bool], blocks: int
) -> None:
    """Tokens and deltas of ``cases``. workers: of each, whether it is one that knows deltas."""
    expected = reference(model, cases)
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    assert max(len(case.tokens) for case in cases) > SMALL["max_num_batched_tokens"]
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        deltas = llm.collective_rpc("slot_delta", args=(output.request_id,))
        assert [delta is not None for delta in deltas] == [w and case.steps > 0 for w in workers]
        known = [delta for delta in deltas if delta is not None]
        assert all(delta == known[0] for delta in known)
        if known:
            assert_delta_equal(known[0], answer, case.lr)
            losses = llm.collective_rpc("slot_losses", args=(output.request_id,))
            assert losses[workers.index(True)] == pytest.approx(answer.losses, rel=2e-4, abs=2e-4)
    for knows, stats in zip(workers, llm.collective_rpc("slot_stats"), strict=True):
        assert bool(stats) == knows
        if knows:
            assert stats["failed"] == stats["ranks_differ"] == 0
            assert stats["optimized"]


@pytest.mark.parametrize(
    ("architecture", "tied", "vocabulary"),
    [
        # 320 rows with the padding: 160 columns and 102.
        pytest.param("qwen2", True, None, id="uneven"),
        # 64 rows with the padding: the second rank has nothing else.
        pytest.param("llama", False, 30, id="padding-only"),
        pytest.param("gemma2", True, None, id="soft-cap"),
    ],
)
def test_tensor_parallel(
    architecture: str,
    tied: bool,
    vocabulary: int | None,
    tiny_models: Callable[..., str],
    parallel: Callable[..., Any],
) -> None:
    model = tiny_models(architecture, tied, vocabulary)
    blocks = 22 if architecture == "gemma2" else 14
    llm = parallel(model, **TP2, num_gpu_blocks_override=blocks)
    cases = cases_of(vocabulary or VOCABULARY)
    assert_equal_to_one_process(llm, model, cases, [True, True], blocks)


def test_pipeline_parallel(tiny_model: str, parallel: Callable[..., Any]) -> None:
    llm = parallel(tiny_model, **PP2)
    assert_equal_to_one_process(llm, tiny_model, cases_of(VOCABULARY), [False, True], 14)
