"""Half of the conformance tests on vLLM's V2 model runner; see test_v2_runner.py."""

import pytest

from tests.engine.test_own_process import run_alone

FILES = ("reference", "schedules", "isolation")


def test_conformance(pytestconfig: pytest.Config) -> None:
    run_alone("v2", [f"conformance/test_{name}.py" for name in FILES], pytestconfig)
