"""The conformance tests on vLLM's V2 model runner, in two halves, which run beside each other."""

import pytest

from tests.engine.test_own_process import ENGINE, run_alone

FIRST = ["test_isolation.py", "test_reference.py", "test_schedules.py"]
REST = sorted({path.name for path in (ENGINE / "conformance").glob("test_*.py")} - {*FIRST})


@pytest.mark.parametrize("files", [FIRST, REST], ids=["first", "rest"])
def test_conformance(files: list[str], pytestconfig: pytest.Config) -> None:
    run_alone("v2", [f"conformance/{name}" for name in files], pytestconfig)
