"""The tests of the Triton kernels, in processes of their own: Triton decides when it is imported
whether it interprets."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    "names", [("kernels.py", "optimizing.py"), ("compiling.py",)], ids=["interpreted", "compiled"]
)
def test_in_a_process_of_its_own(names: tuple[str, ...], pytestconfig: pytest.Config) -> None:
    full = ["--full"] if pytestconfig.getoption("--full") else []
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    paths = [KERNELS / "own_process" / name for name in names]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", *paths, *full],
        env=environment,
        cwd=KERNELS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])
