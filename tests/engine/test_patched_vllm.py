"""A patched vLLM has SLOT without the plugin: the same tests, in a process that loads none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.patched_vllm import copy_vllm

ALL = ["conformance", "test_admission.py", "test_server.py"]
REFERENCE = "conformance/test_reference.py"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = copy_vllm(tmp_path_factory.mktemp("patched"))
    command = ["bash", str(ROOT / "scripts/patch_vllm.sh"), "apply", "--target", str(target)]
    subprocess.run(command, check=True)
    return target


@pytest.mark.parametrize(
    ("runner", "targets"),
    [
        ("v1", ["own_process/patched.py", f"{REFERENCE}::test_tokens_and_deltas[qwen2-True]"]),
        ("v2", ["own_process/patched.py"]),
        pytest.param("v1", ALL, marks=pytest.mark.full, id="v1-all"),
        pytest.param("v2", ["conformance"], marks=pytest.mark.full, id="v2-all"),
    ],
)
def test_without_the_plugin(runner: str, targets: list[str], patched: Path) -> None:
    where = [f"tests/engine/{target}" for target in targets]
    path = os.pathsep.join([str(patched), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", *where],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "VLLM_PLUGINS": "",
            "SLOT_TEST_RUNNER": runner,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])
