"""In-process vLLM engines, shared by the tests of a session."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.conftest import starts
from tests.engine.engines import Engines, begin_test
from tests.engine.runner import V2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not V2 or config.getoption("--full"):
        return
    left = [item for item in items if item.get_closest_marker("any_runner")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
@starts
def engines() -> Iterator[Engines]:
    yield (engines := Engines())
    engines.shut_down()


@pytest.fixture
@starts
def engine(engines: Engines) -> Iterator[Callable[..., Any]]:
    """engine(model, slot={...} or None for a plain engine, **options): equal calls get the same
    engine, with empty caches and counters at zero for each test; a test must leave nothing behind
    in it."""
    used: list[Any] = []

    def get(model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        llm = engines.get(model, slot, **options)
        if not any(llm is other for other in used):
            begin_test(llm)
            used.append(llm)
        return llm

    with ExitStack() as checks:
        yield get
        for llm in used:
            checks.callback(engines.check, llm)


@pytest.fixture
def slot_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What we log, once each, whether or not vLLM's loggers hand on to the root in this process."""
    logger = logging.getLogger("vllm.slot_vllm")
    caplog.set_level(logging.INFO, logger.name)

    def keep(record: logging.LogRecord) -> bool:
        caplog.handler.handle(record)
        return False

    # No handler: vLLM takes those away when it sets up its logging, with the first engine.
    logger.addFilter(keep)
    yield caplog
    logger.removeFilter(keep)
