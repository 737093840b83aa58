"""In-process vLLM engines, shared by the tests of a session.

``SLOT_TEST_RUNNER=v2`` runs vLLM's V2 model runner, on a CPU under Triton's interpreter.
"""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import starts
from tests.engine.engines import Engines, assert_nothing_left, begin_test

V2 = os.environ.get("SLOT_TEST_RUNNER") == "v2"


def _enable_v2() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    # Tensor parallelism and some models fail under dynamo with the interpreter.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import triton

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    class Backend:
        driver = Driver
        compiler = None

    triton.backends.backends["cpu"] = Backend

    # N-gram drafts and grammar bitmasks use integer masks, which the interpreter refuses.
    from triton.runtime.interpreter import InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def masked_load(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *args)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *args)

    InterpreterBuilder.create_masked_load = masked_load
    InterpreterBuilder.create_masked_store = masked_store


if V2:
    _enable_v2()
# It would override the engines' own kv_cache_memory_bytes.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not V2 or config.getoption("--full"):
        return
    left = [item for item in items if item.get_closest_marker("any_runner")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    yield (engines := Engines())
    engines.shut_down()


@pytest.fixture
@starts
def engine(engines: Engines) -> Iterator[Callable[..., Any]]:
    """engine(model, slot={...} or None for a plain engine, **options), or a profile: equal calls
    get the same engine, with empty caches and counters at zero for each test; a test must leave
    nothing behind in it."""
    used: list[Any] = []

    def get(model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        llm = engines.get(model, slot, **options)
        if not any(llm is other for other in used):
            begin_test(llm)
            used.append(llm)
        return llm

    yield get
    for llm in used:
        assert_nothing_left(llm)


@pytest.fixture
def slot_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What we log, once each, whether or not vLLM's loggers hand on to the root in this process."""
    logger = logging.getLogger("vllm.slot_vllm")
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
