"""A patched vLLM calls hooks of its own: the same tests, with no method of a step replaced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.patched_vllm import copy_vllm

PATCHED = "own_process/patched.py"
PARALLEL = "own_process/parallel.py"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = copy_vllm(tmp_path_factory.mktemp("patched"))
    command = ["bash", str(ROOT / "scripts/patch_vllm.sh"), "apply", "--target", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize(
    ("runner", "targets"),
    [
        ("v1", [PATCHED]),
        ("v2", [PATCHED]),
        pytest.param("v1", ["conformance"], marks=pytest.mark.full, id="v1-all"),
        pytest.param("v2", ["conformance"], marks=pytest.mark.full, id="v2-all"),
        pytest.param(
            "v1",
            [f"{PARALLEL}::test_tensor_parallel[uneven]", f"{PARALLEL}::test_pipeline_parallel"],
            marks=pytest.mark.full,
            id="v1-parallel",
        ),
    ],
)
def test_its_hooks_are_called(runner: str, targets: list[str], patched: Path) -> None:
    where = [f"tests/engine/{target}" for target in targets]
    paths = [str(patched), str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", *where],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SLOT_TEST_RUNNER": runner},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])
