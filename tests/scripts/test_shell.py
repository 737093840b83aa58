"""The shell scripts, as far as they can be checked without installing anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = [ROOT / "run_vllm.sh", ROOT / ".ci/run", *sorted((ROOT / "scripts").glob("*.sh"))]


def run(script: Path, path: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Runs a script where ``path`` is all there is to find programs in."""
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, script, *arguments],
        env={"PATH": str(path), **environment},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with the few programs the scripts use, but no Python."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("bash", "cat", "dirname", "sha256sum", "rm", "tee", "mkdir", "date"):
        program = shutil.which(name)
        assert program is not None
        (directory / name).symlink_to(program)
    return directory


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", script], check=True)


def test_setup_without_python(programs: Path, tmp_path: Path) -> None:
    code, output, errors = run(ROOT / "scripts/setup.sh", programs, SLOT_VENV=str(tmp_path / "new"))
    assert (code, output) == (1, "")
    assert "no Python 3.11 or newer" in errors
    assert not (tmp_path / "new").exists()


def test_setup_with_an_old_python(programs: Path, tmp_path: Path) -> None:
    executable(
        tmp_path / "old/bin/python", '[ "$1" != --version ] || { echo Python 3.9.1; exit; }; exit 1'
    )
    code, output, errors = run(ROOT / "scripts/setup.sh", programs, SLOT_VENV="../old")
    assert (code, output) == (1, "")
    assert "old has Python 3.9.1, and 3.11 is needed" in errors


def test_the_gpu_benchmark_without_a_gpu(programs: Path) -> None:
    code, output, errors = run(ROOT / "scripts/bench_gpu.sh", programs)
    assert (code, output) == (1, "")
    assert "bench_gpu: error: no NVIDIA GPU" in errors


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the scripts whose setup ends at once with an environment of stand-ins, which say
    how they were called and end with the status that is asked for."""
    directory = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", directory / "scripts")
    shutil.copy(ROOT / "run_vllm.sh", directory)
    executable(directory / "scripts/setup.sh", f'echo "{directory}/bin/python"')
    for name in ("python", "ruff", "mypy", "vllm"):
        executable(directory / "bin" / name, f'echo "{name} $*"; exit "${{{name}_exit:-0}}"')
    return directory


PYTEST = "python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder"


@pytest.mark.parametrize("part", ["ruff", "mypy", "python"])
@pytest.mark.parametrize("full", [[], ["--full"]])
def test_one_failing_part_fails_the_tests_and_the_others_run(
    part: str, full: list[str], checkout: Path, programs: Path
) -> None:
    arguments = ["-k", "some", *full]
    pytest_call = " ".join([PYTEST, *arguments])
    calls = ["ruff check .", "ruff format --check .", "mypy ", pytest_call]
    for environment, expected in ({}, 0), ({f"{part}_exit": "3"}, 1):
        code, output, _ = run(checkout / "scripts/test.sh", programs, *arguments, **environment)
        assert code == expected
        assert [line for line in output.splitlines() if line in calls] == calls
    logs = [log.read_text() for log in checkout.glob("logs/full/*.log")]
    assert bool(logs) == bool(full)
    assert all(log == f"{pytest_call}\n" for log in logs)


def test_durations_are_a_plugin_of_pytest(checkout: Path, programs: Path) -> None:
    arguments = ["--quick", "--durations", "--durations=5"]
    code, output, _ = run(checkout / "scripts/test.sh", programs, *arguments)
    assert code == 0
    assert output.splitlines()[-1].endswith(f"{PYTEST} --quick -p tests.durations --durations=5")


def test_the_main_job_passes_everything_on(checkout: Path, programs: Path) -> None:
    code, output, _ = run(
        checkout / "run_vllm.sh", programs, "--config", "a b.yaml", "--resume", python_exit="2"
    )
    assert (code, output) == (2, "python -m slot_vllm.evaluation --config a b.yaml --resume\n")
