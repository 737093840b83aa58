"""The engine tests that need a process of their own: n-gram drafts, traces, other plugins,
several workers."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ENGINE = Path(__file__).parent
# Many times what each takes: workers that wait for one another would wait for ever.
TIME_LIMIT = {False: 2400, True: 4 * 3600}


@pytest.mark.parametrize(
    ("runner", "names"),
    [
        # In this order: workers are forked from a process without threads that trace, and after
        # n-gram drafts no further engine can be started. V2's are in test_v2_runner.py.
        ("v1", ["parallel.py", "tracing.py", "ngram.py"]),
        ("v1", ["plugins.py"]),
        ("v2", ["plugins.py"]),
        pytest.param("v2", ["parallel.py"], marks=pytest.mark.full),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_in_a_process_of_its_own(
    runner: str, names: list[str], pytestconfig: pytest.Config
) -> None:
    run_alone(runner, [f"own_process/{name}" for name in names], pytestconfig)


def run_alone(runner: str, targets: Sequence[str], pytestconfig: pytest.Config) -> None:
    """tests/engine/TARGETS on a model runner, in another process. Raises AssertionError."""
    files = [str(ENGINE / target) for target in targets]
    full = ["--full"] if pytestconfig.getoption("--full") else []
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", *files, *full],
        env={**os.environ, "SLOT_TEST_RUNNER": runner},
        cwd=ENGINE.parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT[bool(full)],
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])
