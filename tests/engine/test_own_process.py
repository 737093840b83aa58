"""The engine tests that need a process of their own: n-gram drafts, traces, several workers."""

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
    ("runner", "target"),
    [
        ("v1", "own_process/ngram.py"),
        ("v2", "own_process/ngram.py"),
        ("v1", "own_process/tracing.py"),
        ("v1", "own_process/parallel.py"),
        pytest.param("v2", "own_process/parallel.py", marks=pytest.mark.full),
    ],
)
def test_in_a_process_of_its_own(runner: str, target: str, pytestconfig: pytest.Config) -> None:
    run_alone(runner, [target], pytestconfig)


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
