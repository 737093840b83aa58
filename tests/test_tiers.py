"""The options and the plugin that scripts/test.sh gives pytest, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.durations import table
from tests.groups import ALONE, FOLDERS

TESTS = """
import subprocess
import sys

import pytest

from tests.conftest import starts


@pytest.fixture
@starts
def server():
    return "a server"


@pytest.fixture
def client(server):
    return server


def test_with_a_server(client):
    assert client == "a server"


def test_that_starts_python():
    subprocess.run([sys.executable, "-c", ""], check=True)


def test_that_does_not():
    subprocess.run(["true"], check=True)


@pytest.mark.full
def test_for_long():
    pass
"""


def run(folder: Path, *options: str) -> str:
    """What pytest says of ``TESTS``, which pass."""
    (folder / "test_some.py").write_text(TESTS)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if k != "SLOT_TEST_DURATIONS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", *plugins, *options, "test_some.py"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        (["--quick"], "1 passed, 1 skipped, 2 deselected"),
        ([], "3 passed, 1 deselected"),
        (["--full"], "4 passed"),
    ],
)
def test_a_tier(options: list[str], outcome: str, tmp_path: Path) -> None:
    said = run(tmp_path, *options)
    assert outcome in said
    assert ("it starts a Python process" in said) == (options == ["--quick"])


def test_a_file_stays_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other(): pass")
    said = run(tmp_path, "test_other.py", "-v", "-n", "2", "--dist", "loadgroup")
    passed = [line.split() for line in said.splitlines() if "%] PASSED" in line]
    assert len(passed) == 4
    assert len({words[0] for words in passed if words[-1].startswith("test_some.py")}) == 1


def test_what_is_alone_exists() -> None:
    for start in ALONE:
        file, _, name = start.partition("::")
        assert f"def {name.rstrip('[')}" in (ROOT / file).read_text()
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


@pytest.mark.parametrize("processes", [[], ["-n", "2"]])
def test_durations(processes: list[str], tmp_path: Path) -> None:
    said = run(tmp_path, "-p", "tests.durations", *processes)
    (row,) = [line for line in said.splitlines() if line.startswith("| test_some.py |")]
    times, *_, engines, servers, started = [word.strip() for word in row.split("|")[2:-1]]
    assert (times, engines, servers, started) == ("3", "0", "0", "2")


def test_what_a_test_started_is_counted_once() -> None:
    spent = {"seconds": 3.0, "cpu": 2.0, "engines": 1, "servers": 0, "processes": 1}
    records = [
        {"kind": "test", "name": "a", "file": "a.py", "nested": nested, **spent}
        for nested in (False, True)
    ]
    records.append({"kind": "fixture", "name": "f (module)", "file": "", "nested": False, **spent})
    rows = table(records).splitlines()
    assert "| a.py | 1 | 3.0 | 2.0 | 1 | 0 | 1 |" in rows
    assert "| ↳ a.py | 1 | 3.0 | 2.0 | 1 | 0 | 1 |" in rows
    # The inner one's time is in the outer one's; what it started is not.
    assert "| all | 2 | 3.0 | 2.0 | 2 | 0 | 2 |" in rows
    assert "| f (module), pytest | 1 | 3.0 | 2.0 | 1 | 0 | 1 |" in rows
