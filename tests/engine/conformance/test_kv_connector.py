"""Prompts whose KV a connector brings from elsewhere: SLOT requests compute them again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import starts
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import ROOMY
from tests.engine.generate import delta_of, run, stats_of, tokens_of

NEW = 8


@pytest.fixture
def no_connector_left() -> Iterator[None]:
    """vLLM has one per process, and the V1 runners of all its engines would ask it."""
    yield
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    ensure_kv_transfer_shutdown()


@pytest.fixture
@starts
def connected(
    no_connector_left: None, tiny_model: str, engine: Callable[..., Any], tmp_path: Path
) -> Any:
    settings = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    # It stores what the first step of a prompt computes.
    options = {"max_num_batched_tokens": 320, "kv_transfer_config": settings, **ROOMY}
    return engine(tiny_model, slot={"lr": 0.3}, **options)


def test_slot_requests_compute_what_others_load(connected: Any, tiny_model: str) -> None:
    tokens = random_tokens(100, seed=4000)
    plain, slot = Case(tokens, 0, 0.1, NEW), Case(tokens, 5, 0.3, NEW)
    expected = reference(tiny_model, [plain, slot, slot])
    run(connected, [plain])
    # Once from outside, beside a request that loads, and once with what that has left in the
    # prefix cache; the last request has the engine's settings.
    connected.reset_prefix_cache()
    for loads in (True, False):
        outputs = run(connected, [plain, slot])
        outputs += run(connected, [slot], extra_args=None)
        assert [output.num_cached_tokens for output in outputs] == [96, 0, 0], loads
        assert_tokens_equal(tokens_of(outputs), expected)
        for output, answer in zip(outputs[1:], expected[1:], strict=True):
            assert_delta_equal(delta_of(connected, output), answer, slot.lr)
    # What a SLOT request computed others load.
    other = random_tokens(70, seed=4001)
    run(connected, [Case(other, 5, 0.3, NEW)])
    connected.reset_prefix_cache()
    (output,) = run(connected, [Case(other, 0, 0.1, NEW)])
    assert output.num_cached_tokens == 64
    stats = stats_of(connected)
    assert (stats["failed"], stats["bypassed"], stats["hidden_rows_cached"]) == (0, 0, 0)
