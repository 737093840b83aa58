"""Do the tests pass every time? Runs the suite again and again, with and without a load on a core.

    python scripts/repeat_tests.py [--times 5] [ARGUMENTS OF PYTEST]

Each run is a line of logs/full/repeated.jsonl. Runs of the same code, tests and arguments that are
there count: so it can be continued after days. What fails once is to be mended, and its file then
run ten times: ``--times 10 tests/FILE``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# As scripts/test.sh has it.
PROCESSES = ["--numprocesses=2", "--dist=loadgroup", "--no-loadscope-reorder"]
LOG = ROOT / "logs/full/repeated.jsonl"


@dataclass(frozen=True)
class Run:
    """code: of slot_vllm/ and tests/, as git names them. loaded: with a busy process beside it.
    status: pytest's. seconds: of the wall."""

    commit: str
    code: str
    arguments: list[str]
    loaded: bool
    began: str
    seconds: float
    status: int
    passed: int
    failed: list[str]


def logged() -> list[Run]:
    lines = LOG.read_text().splitlines() if LOG.is_file() else []
    return [Run(**json.loads(line)) for line in lines]


@contextmanager
def load(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def once(arguments: Sequence[str], loaded: bool, commit: str, code: str) -> Run:
    command = [sys.executable, "-m", "pytest", *PROCESSES, "-q"]
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, load(loaded):
        results = Path(folder) / "results.xml"
        command += [f"--junitxml={results}", *arguments]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        cases = list(ElementTree.parse(results).iter("testcase")) if results.is_file() else []
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = sum(len(case) == 0 for case in cases)
    seconds = round(time.monotonic() - start, 1)
    return Run(commit, code, list(arguments), loaded, began, seconds, status, passed, failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=5, help="with a load, and as often without")
    options, arguments = parser.parse_known_args()
    if _git("status", "--porcelain", "slot_vllm", "tests"):
        parser.error("slot_vllm/ or tests/ have changes that are not committed")
    commit = _git("rev-parse", "--short", "HEAD")
    code = " ".join(_git("rev-parse", "--short", f"HEAD:{name}") for name in ("slot_vllm", "tests"))
    before = [run for run in logged() if (run.code, run.arguments) == (code, arguments)]
    for number in range(2 * options.times):
        loaded = bool(number % 2)
        if sum(run.loaded == loaded for run in before) > number // 2:
            continue
        run = once(arguments, loaded, commit, code)
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with LOG.open("a") as log:
            log.write(json.dumps(asdict(run)) + "\n")
        before.append(run)
        print(f"{run.passed} passed, {len(run.failed)} failed in {run.seconds} s", flush=True)
    bad = [run for run in before if run.status]
    print(f"{len(before) - len(bad)} of {len(before)} runs passed")
    for run in bad:
        print(f"- {run.began}{', loaded' if run.loaded else ''}: {', '.join(run.failed)}")
    return int(bool(bad))


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
