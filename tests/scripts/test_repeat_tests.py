import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import repeat_tests

# Fails in every second run.
TESTS = """
from pathlib import Path

def test_one():
    mark = Path(__file__).with_name("mark")
    try:
        assert not mark.exists()
        mark.touch()
    except AssertionError:
        mark.unlink()
        raise

def test_other():
    pass
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".gitignore").write_text("mark\n__pycache__\nlogs\n")
    for file, text in (("slot_vllm/code.py", ""), ("tests/test_some.py", TESTS)):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    # Of a run with --durations, whose plugin is not in this repository.
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    monkeypatch.setattr(repeat_tests, "ROOT", tmp_path)
    monkeypatch.setattr(repeat_tests, "PROCESSES", [])
    monkeypatch.setattr(repeat_tests, "LOG", tmp_path / "logs/full/repeated.jsonl")
    return tmp_path


def repeat(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr(sys, "argv", ["repeat_tests.py", *arguments])
    status = repeat_tests.main()
    return status, [json.loads(line) for line in repeat_tests.LOG.read_text().splitlines()]


def test_runs_are_logged_and_continued(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, runs = repeat(monkeypatch, "--times", "1")
    assert status == 1
    assert [(run["loaded"], run["passed"]) for run in runs] == [(False, 2), (True, 1)]
    assert [run["failed"] for run in runs] == [[], ["tests.test_some::test_one"]]
    assert len({run["commit"] for run in runs}) == 1
    # Those that are there are not run again.
    status, runs = repeat(monkeypatch, "--times", "2")
    assert len(runs) == 4 and [run["loaded"] for run in runs] == [False, True] * 2
    # Other tests are others.
    status, runs = repeat(monkeypatch, "--times", "1", "-k", "other")
    assert status == 0 and len(runs) == 6


def test_uncommitted_code_is_no_commit_s(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "tests/test_some.py").write_text("")
    with pytest.raises(SystemExit):
        repeat(monkeypatch)
    assert "not committed" in capsys.readouterr().err
