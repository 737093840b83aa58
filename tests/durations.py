"""Where the suite's time goes: ``bash scripts/test.sh --durations``, or ``-p tests.durations``.

Every pytest process of a run, xdist's workers and those that tests start included, appends its
records to one file; the first one prints the table. ``python -m tests.durations FILE...`` prints it
of kept files. Seconds are of the wall; CPU seconds are user and system of a process and of the
children it waited for, so that a busy machine counts little.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Where the records go; also tells a process that tests started that it is one.
FILE = "SLOT_TEST_DURATIONS"
NUMBERS = ("seconds", "cpu", "engines", "servers", "processes")
STARTS_ENGINE = "Initializing a V1 LLM engine"

counts: Counter[str] = Counter()


def _count_engines(record: logging.LogRecord) -> bool:
    counts["engines"] += STARTS_ENGINE in str(record.msg)
    return True


def _count_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "subprocess.Popen":
        return
    counts["processes"] += 1
    words = [str(word) for word in arguments[1]]
    # ``vllm serve``, by itself or in a script.
    counts["servers"] += "--port" in words


def _numbers() -> dict[str, float]:
    spent = os.times()
    cpu = spent.user + spent.system + spent.children_user + spent.children_system
    return {**dict.fromkeys(NUMBERS, 0), **counts, "seconds": time.monotonic(), "cpu": cpu}


class Recorder:
    """nested: this process was started by a test."""

    def __init__(self, path: str, nested: bool) -> None:
        self._path, self._nested = path, nested

    @contextmanager
    def _of(self, kind: str, name: str, file: str) -> Generator[None]:
        before = _numbers()
        yield
        spent = {key: value - before[key] for key, value in _numbers().items()}
        line = {"kind": kind, "name": name, "file": file, "nested": self._nested, **spent}
        # One write of a short line is whole, whoever else writes.
        with Path(self._path).open("a") as out:
            out.write(json.dumps(line) + "\n")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with self._of("test", item.name, item.location[0]):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        with self._of("fixture", f"{fixturedef.argname} ({fixturedef.scope})", fixturedef.baseid):
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    kept, worker = os.environ.get(FILE), hasattr(config, "workerinput")
    nested = kept is not None and not worker
    if kept is None:
        descriptor, kept = tempfile.mkstemp(prefix="durations-", suffix=".jsonl")
        os.close(descriptor)
        config.stash[_OWN] = kept
        os.environ[FILE] = kept
        # Of those that tests start.
        os.environ["PYTEST_PLUGINS"] = "tests.durations"
    logging.getLogger("vllm.v1.engine.core").addFilter(_count_engines)
    sys.addaudithook(_count_processes)
    config.pluginmanager.register(Recorder(kept, nested))


_OWN = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    own = config.stash.get(_OWN, None)
    if own is not None:
        terminalreporter.section("durations")
        terminalreporter.write_line(f"records: {own}")
        terminalreporter.write_line(table(_read([own])))


def _read(paths: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: files, in processes that tests start as rows of their own (their time is in the
    starting test's, too), then fixtures."""
    files: dict[tuple[bool, str], Counter[str]] = defaultdict(Counter)
    fixtures: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        spent = Counter({key: record[key] for key in NUMBERS}) + Counter(times=1)
        if record["kind"] == "test":
            files[record["nested"], record["file"]] += spent
        else:
            fixtures[f"{record['name']}, {record['file'] or 'pytest'}"] += spent
    lines = _rows("file", {f"↳ {f}" if nested else f: n for (nested, f), n in files.items()})
    whole = sum((n for (nested, _), n in files.items() if not nested), Counter[str]())
    inner = sum((n for (nested, _), n in files.items() if nested), Counter[str]())
    for key in ("engines", "servers", "processes", "times"):
        whole[key] += inner[key]
    lines += [_row("all", whole), ""]
    heavy = {name: n for name, n in fixtures.items() if n["cpu"] + n["seconds"] >= 2}
    return "\n".join(lines + _rows("fixture", heavy))


def _rows(title: str, numbers: Mapping[str, Counter[str]]) -> list[str]:
    ordered = sorted(numbers.items(), key=lambda item: -item[1]["cpu"])
    head = f"| {title} | times | s | CPU s | engines | servers | processes |"
    return [head, "|---|--:|--:|--:|--:|--:|--:|", *(_row(name, n) for name, n in ordered)]


def _row(name: str, numbers: Counter[str]) -> str:
    seconds = f"{numbers['seconds']:.1f} | {numbers['cpu']:.1f}"
    counted = " | ".join(str(int(numbers[key])) for key in ("engines", "servers", "processes"))
    return f"| {name} | {numbers['times']} | {seconds} | {counted} |"


if __name__ == "__main__":
    print(table(_read(sys.argv[1:])))
