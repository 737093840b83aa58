"""Under coverage, which test executes which lines: a plugin of pytest, for scripts/mutants.py."""

from collections.abc import Generator
from typing import Any

import coverage
import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    running = coverage.Coverage.current()
    if running is None:
        return (yield)
    running.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        running.switch_context("")
