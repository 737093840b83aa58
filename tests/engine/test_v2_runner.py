"""The conformance tests on vLLM's V2 model runner, in two processes: the tests of a file run one
after the other, and two files beside each other."""

import pytest

from tests.engine import test_v2_runner_schedules
from tests.engine.test_own_process import ENGINE, run_alone


def test_conformance(pytestconfig: pytest.Config) -> None:
    others = {f"test_{name}.py" for name in test_v2_runner_schedules.FILES}
    files = {path.name for path in (ENGINE / "conformance").glob("test_*.py")}
    assert others < files
    run_alone("v2", sorted(f"conformance/{name}" for name in files - others), pytestconfig)
