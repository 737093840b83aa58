"""Do the tests find mistakes? Makes those of tests/mutants.toml, each in a copy of its own.

    python scripts/mutants.py record [ARGUMENTS OF PYTEST]   which tests execute which lines
    python scripts/mutants.py run [NAME ...]                 each mutant, or these
    python scripts/mutants.py report

A mutant's tests are those that execute its lines, the quickest first, up to the first failure; one
that survives them meets the whole default suite. What fails must pass without the mutant, or the
outcome is an error. Each is a line of logs/full/mutants.jsonl, and one whose line is there, of the
same code and tests, is not run again: so a run can be continued.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache/mutants"
LOG = ROOT / "logs/full/mutants.jsonl"
# As scripts/test.sh runs it, but for the test that the mutants' own lines are there.
SUITE = [
    *("--numprocesses=2", "--dist=loadgroup", "--no-loadscope-reorder"),
    *("--deselect=tests/scripts/test_mutants.py", "tests"),
]
# Many times what a mutant's tests take; a mutant that waits for ever is found.
TIME_LIMIT = 3600
# Copies that are tested side by side: as the suite has processes.
AT_ONCE = 2
# Read by every process that is started: what a test starts is in the test's context, which pytest
# names in its environment. ``_exit``: of vLLM's own processes.
CONFIGURATION = f"""[run]
source = slot_vllm
data_file = {CACHE}/coverage
parallel = true
patch = _exit
context = ${{PYTEST_CURRENT_TEST-}}
"""
# In a process that a test started: the test, its phase, and there perhaps a test of its own.
STARTED = re.compile(r"(.+) \((?:setup|call|teardown)\)(?:\|.*)?")


@dataclass(frozen=True)
class Mutant:
    """old: stands once in ``file``. lives: why no test can find it."""

    name: str
    file: str
    old: str
    new: str
    lives: str | None = None

    def apply(self, root: Path) -> None:
        """Raises ValueError if the code has changed too much."""
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {text.count(self.old)} times in {self.file}: {self.old!r}; "
                "required: once"
            )
        path.write_text(text.replace(self.old, self.new))

    def lines(self, root: Path) -> range:
        before, found, _ = (root / self.file).read_text().partition(self.old)
        first = before.count("\n") + 1
        return range(first, first + found.rstrip("\n").count("\n") + 1)


@dataclass(frozen=True)
class Outcome:
    """outcome: died, survived or error. by: the test that failed, or what else. tests: how many
    were chosen. key: of the mutant, the code and the tests."""

    mutant: str
    outcome: str
    by: str
    tests: int
    seconds: float
    commit: str
    key: str


def mutants(path: Path = ROOT / "tests/mutants.toml") -> list[Mutant]:
    with path.open("rb") as file:
        return [Mutant(**entry) for entry in tomllib.load(file)["mutant"]]


def tests_of(contexts: Iterable[str]) -> set[str]:
    """The tests that coverage's contexts name."""
    found = {started[1] if (started := STARTED.fullmatch(c)) else c for c in contexts}
    return found - {""}


def chosen(
    mutant: Mutant, contexts: Mapping[int, Sequence[str]], seconds: Mapping[str, float]
) -> list[str]:
    """Those that execute one of its lines, the quickest first. contexts: by line."""
    lines = mutant.lines(ROOT)
    found = tests_of(context for line in lines for context in contexts.get(line, ()))
    return sorted(found, key=lambda test: (seconds.get(test, 0.0), test))


def tracked() -> list[str]:
    return _git("ls-files", "--cached", "--others", "--exclude-standard").split("\n")


def key_of(mutant: Mutant, files: Iterable[str]) -> str:
    """Of what decides whether it is found."""
    digest = hashlib.sha256(json.dumps(asdict(mutant)).encode())
    for name in sorted(files):
        if name.startswith(("slot_vllm/", "tests/")) and name != "tests/mutants.toml":
            path = ROOT / name
            content = bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
            digest.update(content)
    return digest.hexdigest()[:16]


def record(arguments: Sequence[str]) -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob("coverage*"):
        old.unlink()
    durations = CACHE / "durations.jsonl"
    durations.unlink(missing_ok=True)
    configuration = CACHE / "configuration"
    configuration.write_text(CONFIGURATION)
    environment = {
        **os.environ,
        "COVERAGE_PROCESS_START": str(configuration),
        "SLOT_TEST_DURATIONS": str(durations),
        "PYTEST_PLUGINS": "tests.durations,tests.coverage_contexts",
    }
    # Not by groups, whose names pytest-xdist adds to the tests'.
    what = arguments or ["--numprocesses=2", "--dist=loadfile", "tests"]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", *what], cwd=ROOT, env=environment, check=False
    )
    if tests.returncode:
        print("error: without a mutant, too, the tests fail: nothing is recorded", file=sys.stderr)
        return tests.returncode
    # Not of the packages that tests build and install elsewhere.
    for command in (["combine"], ["report", "--include=slot_vllm/*"]):
        call = [sys.executable, "-m", "coverage", *command, f"--rcfile={configuration}"]
        subprocess.run(call, cwd=ROOT, check=True)
    return 0


def _copy(files: Iterable[str], folder: Path) -> Path:
    """Of the code and the tests, with this checkout's models and benchmark items beside it."""
    tree = folder / "slot-vllm"
    shutil.rmtree(folder, ignore_errors=True)
    for name in files:
        # A link may be to a folder; a file that is deleted and not yet committed is none.
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    (tree / ".cache").mkdir()
    for link, target in (
        (tree / ".cache/tiny_models", ROOT / ".cache/tiny_models"),
        (tree.parent / "shared", ROOT.parent / "shared"),
    ):
        if target.is_dir():
            link.symlink_to(target)
    return tree


def _pytest(tree: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """The exit status, -1 after the time limit, and what failed first."""
    listed = tree.parent / "arguments"
    listed.write_text("\n".join(arguments))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-W", "ignore", f"@{listed}"]
    paths = [str(tree), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return -1, "the time limit"
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    # The last: a failing test's own log is shown before, and its lines may begin alike.
    return done.returncode, failed[-1] if failed else (done.stdout + done.stderr)[-300:]


def meet(
    mutant: Mutant, tests: Sequence[str], files: Sequence[str], folder: Path, passing: set[str]
) -> tuple[str, str]:
    """outcome and by. folder: of the copy, which nobody else uses. passing: what is known to pass
    without a mutant; what kills this one joins it, or has failed for another reason."""
    tree = _copy(files, folder)
    mutant.apply(tree)
    parts = [list(tests)] if tests else []
    for arguments in [*parts, SUITE]:
        status, said = _pytest(tree, arguments)
        # 2: the tests could not even be collected.
        if status in (1, 2) and said not in passing:
            shutil.copy2(ROOT / mutant.file, tree / mutant.file)
            # After the same tests: it may be these that it fails by.
            before = arguments[: arguments.index(said) + 1] if said in arguments else [said]
            if _pytest(tree, before)[0] != 0:
                return "error", f"{said}, which fails without the mutant, too"
            passing.add(said)
        if status in (-1, 1, 2):
            return "died", said
        if status != 0:
            return "error", said
    return "survived", "the whole suite"


def logged() -> list[Outcome]:
    lines = LOG.read_text().splitlines() if LOG.is_file() else []
    return [Outcome(**json.loads(line)) for line in lines]


def run(names: Sequence[str]) -> int:
    from coverage import CoverageData

    data = CoverageData(str(CACHE / "coverage"))
    data.read()
    if not data.measured_files():
        print("error: nothing is recorded; first: scripts/mutants.py record", file=sys.stderr)
        return 2
    seconds: dict[str, float] = {}
    for line in (CACHE / "durations.jsonl").read_text().splitlines():
        spent = json.loads(line)
        seconds[f"{spent['file']}::{spent['name']}"] = spent["seconds"]
    files = tracked()
    done = {outcome.key for outcome in logged() if outcome.outcome != "error"}
    wanted = [m for m in mutants() if not names or m.name in names]
    if unknown := set(names) - {m.name for m in wanted}:
        print(f"error: unknown: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    LOG.parent.mkdir(parents=True, exist_ok=True)
    passing: set[str] = set()
    free: SimpleQueue[Path] = SimpleQueue()
    for i in range(AT_ONCE):
        free.put(CACHE / f"tree{i}")

    def one(mutant: Mutant, tests: Sequence[str], key: str) -> None:
        folder = free.get()
        began = time.monotonic()
        outcome, by = meet(mutant, tests, files, folder, passing)
        spent_ = round(time.monotonic() - began, 1)
        free.put(folder)
        result = Outcome(mutant.name, outcome, by, len(tests), spent_, commit, key)
        with LOG.open("a") as log:
            log.write(json.dumps(asdict(result)) + "\n")
        print(f"{outcome:9}{mutant.name}  ({len(tests)} tests, {spent_} s; {by})", flush=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = []
        for mutant in wanted:
            key = key_of(mutant, files)
            if key not in done:
                contexts = data.contexts_by_lineno(str(ROOT / mutant.file))
                running.append(pool.submit(one, mutant, chosen(mutant, contexts, seconds), key))
        for mutant_run in running:
            mutant_run.result()
    return report()


def report() -> int:
    """Of the last line of each mutant; 1 if less than 95 % died."""
    last = {outcome.mutant: outcome for outcome in logged()}
    known = {m.name: m for m in mutants()}
    results: list[Any] = [last[name] for name in known if name in last]
    died = [r for r in results if r.outcome == "died"]
    print(f"{len(died)} of {len(results)} mutants died; {len(known) - len(results)} were not run")
    for r in results:
        if r.outcome != "died":
            print(f"- {r.mutant}: {r.outcome} ({r.by}); {known[r.mutant].lives or 'not explained'}")
    return int(len(died) < 0.95 * len(results))


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record")
    commands.add_parser("run").add_argument("names", nargs="*", metavar="NAME")
    commands.add_parser("report")
    options, arguments = parser.parse_known_args()
    if options.command == "record":
        return record(arguments)
    if arguments:
        parser.error(f"unknown: {' '.join(arguments)}")
    return run(options.names) if options.command == "run" else report()


if __name__ == "__main__":
    sys.exit(main())
