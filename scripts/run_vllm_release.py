"""Run the conformance tests, and the server's, on a release of vLLM, on both model runners.

    python scripts/run_vllm_release.py 0.33.0
    python scripts/run_vllm_release.py 0.31.0 --runners v2 --files test_isolation.py -- -k salt

What follows ``--`` is for pytest. logs/releases/RELEASE-RUNNER.json gets, per file of tests, how
many passed, and what failed with its message. A file that passed at the same commit with the same
arguments is not run again, unless with --again: so it can be stopped and continued. The exit code
is 1 if a test failed or a release cannot be run, which is logged with its reason. docs/releases.md
is made from these logs (``scripts/fill_tables.py``).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from release_environment import CACHE, Environment, NotRunnable, make

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    path.name: path
    for path in (
        *sorted((ROOT / "tests/engine/conformance").glob("test_*.py")),
        ROOT / "tests/engine/test_server.py",
        ROOT / "tests/engine/test_rust_front_end.py",
    )
}
LOGS = ROOT / "logs/releases"
RUNNERS = ("v1", "v2")
_MESSAGE = 300  # characters of a failure


@dataclass(frozen=True)
class FileResult:
    """Of one file of tests. arguments: pytest's. failed: messages by test."""

    commit: str
    arguments: list[str]
    passed: int
    skipped: int
    failed: dict[str, str]


@dataclass
class RunnerLog:
    """One file of LOGS. not_run: why no test can be."""

    release: str
    runner: str
    python: str = ""
    kernels: str = ""
    torch: str = ""
    packages: list[str] = field(default_factory=list)
    files: dict[str, FileResult] = field(default_factory=dict)
    not_run: str | None = None

    @classmethod
    def read(cls, release: str, runner: str) -> "RunnerLog":
        path = LOGS / f"{release}-{runner}.json"
        if not path.is_file():
            return cls(release, runner)
        found = json.loads(path.read_text(encoding="utf-8"))
        files = {name: FileResult(**result) for name, result in found.pop("files").items()}
        return cls(**found, files=files)

    def write(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.files = dict(sorted(self.files.items()))
        text = json.dumps(asdict(self), indent=1) + "\n"
        (LOGS / f"{self.release}-{self.runner}.json").write_text(text, encoding="utf-8")


def run_file(
    name: str, environment: Environment, runner: str, arguments: Sequence[str], limit: float
) -> FileResult:
    """limit: in seconds; a file that takes longer has failed."""
    paths = [str(environment.folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-W", "ignore", f"--junitxml={results}",
             str(TESTS[name]), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "SLOT_TEST_RUNNER": runner,
                # Only what is imported of a release is ever compiled, and then stays so.
                "PYTHONDONTWRITEBYTECODE": "",
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except BaseException as error:
            # With what it has started.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return FileResult(
                _commit(), list(arguments), 0, 0, {name: f"not done after {limit:.0f} s"}
            )
        cases = list(ElementTree.parse(results).iter("testcase")) if results.is_file() else []
    failed = {}
    for case in cases:
        for bad in (*case.iter("failure"), *case.iter("error")):
            failed[str(case.get("name"))] = _message(bad)
    # 5: no test was selected.
    if process.returncode not in (0, 1, 5) and not failed:
        lines = output.strip().splitlines() or [""]
        failed[name] = f"pytest ended with {process.returncode}: {lines[-1][:_MESSAGE]}"
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = sum(len(case) == 0 for case in cases)
    return FileResult(_commit(), list(arguments), passed, skipped, failed)


def _message(bad: ElementTree.Element) -> str:
    said = (bad.get("message") or "").strip()
    if said == "collection failure":
        lines = [line for line in (bad.text or "").splitlines() if line.strip()]
        said = lines[-1].removeprefix("E").strip() if lines else said
    return " ".join(said.split())[:_MESSAGE]


def _commit() -> str:
    """Of the package and the tests: these logs change while they are written."""
    commit, changed = (
        subprocess.run(["git", *git], cwd=ROOT, capture_output=True, text=True, check=False)
        for git in (
            ("describe", "--always", "--exclude=*"),
            ("diff", "--quiet", "HEAD", "--", "slot_vllm", "tests"),
        )
    )
    return commit.stdout.strip() + ("-dirty" if changed.returncode else "")


def run_release(release: str, options: argparse.Namespace, arguments: Sequence[str]) -> bool:
    """Whether all that there is to run passes."""
    logs = [RunnerLog.read(release, runner) for runner in options.runners]
    try:
        environment = make(release, options.cache)
    except NotRunnable as reason:
        for log in logs:
            log.not_run, log.files = str(reason), {}
            log.write()
        print(f"vLLM {release}: {reason}", flush=True)
        return False
    good = True
    for log in logs:
        log.not_run = None
        log.python, log.kernels = environment.python, environment.kernels
        log.torch, log.packages = environment.torch, environment.packages
        for name in options.files:
            done = log.files.get(name)
            run = (_commit(), list(arguments))
            there = done is not None and not done.failed and (done.commit, done.arguments) == run
            if done is None or not there or options.again:
                done = log.files[name] = run_file(
                    name, environment, log.runner, arguments, options.limit
                )
                log.write()
            counts = f"{done.passed} passed, {len(done.failed)} failed, {done.skipped} skipped"
            print(f"vLLM {release}, {log.runner}, {name}: {counts}", flush=True)
            for test, message in done.failed.items():
                print(f"  {test}: {message}", flush=True)
            good = good and not done.failed
    return good


def main() -> int:
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="+", metavar="RELEASE")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--files", nargs="+", choices=TESTS, default=list(TESTS), metavar="FILE")
    parser.add_argument("--again", action="store_true", help="also what is in the log and passed")
    parser.add_argument(
        "--limit", type=float, default=3600, metavar="SECONDS", help="of a file; default: 3600"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"default: {CACHE}")
    options = parser.parse_args(given[:split])
    good = [run_release(release, options, given[split + 1 :]) for release in options.releases]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
