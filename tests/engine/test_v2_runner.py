"""The conformance tests on vLLM's V2 model runner; a file of its own runs beside others."""

import pytest

from tests.engine.test_own_process import run_alone


def test_conformance(pytestconfig: pytest.Config) -> None:
    run_alone("v2", "conformance", pytestconfig)
