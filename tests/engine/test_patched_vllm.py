"""A patched vLLM has SLOT without the plugin: the same tests, in a process that loads none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.engine.patched_vllm import copy_vllm

ALL = ["conformance", "test_admission.py", "test_server.py", "test_server_metrics.py"]
REFERENCE = "conformance/test_reference.py"
STREAMED = "test_server.py::test_a_long_prompt_that_names_settings_is_400[responses-True]"
PARALLEL = "own_process/parallel.py"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = copy_vllm(tmp_path_factory.mktemp("patched"))
    command = ["bash", str(ROOT / "scripts/patch_vllm.sh"), "apply", "--target", str(target)]
    subprocess.run(command, check=True)
    return target


def run_with(
    target: Path, *arguments: str, plugins: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python with the vLLM in ``target``. plugins: those that it loads."""
    paths = [str(target), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "VLLM_PLUGINS": plugins,
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("runner", "targets"),
    [
        (
            "v1",
            [
                "own_process/patched.py",
                f"{REFERENCE}::test_tokens_and_deltas[qwen2-True]",
                STREAMED,
            ],
        ),
        ("v1", ["own_process/tracing.py"]),
        ("v2", ["own_process/patched.py"]),
        pytest.param("v1", ALL, marks=pytest.mark.full, id="v1-all"),
        pytest.param("v2", ["conformance"], marks=pytest.mark.full, id="v2-all"),
        pytest.param(
            "v1",
            [f"{PARALLEL}::test_tensor_parallel[uneven]", f"{PARALLEL}::test_pipeline_parallel"],
            marks=pytest.mark.full,
            id="v1-parallel",
        ),
    ],
)
def test_without_the_plugin(runner: str, targets: list[str], patched: Path) -> None:
    where = [f"tests/engine/{target}" for target in targets]
    result = run_with(
        patched, "-m", "pytest", "-q", "-W", "ignore", *where, SLOT_TEST_RUNNER=runner
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    print(result.stdout.splitlines()[-1])


START = """
import sys

import vllm
from vllm import LLM

from slot_vllm.params import SlotError

assert vllm.__file__.startswith(sys.argv[2])
options = {"enforce_eager": True, "max_model_len": 64, "kv_cache_memory_bytes": 1 << 24}
LLM(sys.argv[1], skip_tokenizer_init=True, **options)
try:
    LLM(sys.argv[1], worker_extension_cls="slot_vllm.SlotWorkerExtension", **options)
except SlotError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def upgraded(patched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an upgrade or a reinstall makes of a patched vLLM: pip knows nothing of the new file."""
    target = copy_vllm(tmp_path_factory.mktemp("upgraded"))
    shutil.copy(patched / "vllm/slot_hooks.py", target / "vllm/slot_hooks.py")
    return target


@pytest.mark.parametrize("plugins", ["", "slot_vllm"])
def test_hooks_that_an_upgrade_left_behind_are_refused(
    plugins: str, upgraded: Path, tiny_model: str
) -> None:
    result = run_with(upgraded, "-c", START, tiny_model, str(upgraded), plugins=plugins)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (said,) = (line for line in result.stdout.splitlines() if line.startswith("refused:"))
    assert f"{upgraded}/vllm/slot_hooks.py, but not all hunks of the patch" in said
    assert "Worker.load_model does not call slot_model_loaded" in said
    assert "scripts/patch_vllm.sh revert" in said
