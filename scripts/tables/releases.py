"""Which releases of vLLM were run, by run_vllm_release.py and check_vllm.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables.markdown import table


def releases(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for release, source in _sources(directory).items():
        logs = [_release_log(directory, release, runner) for runner in ("v1", "v2")]
        runs = [
            _run(log) if source[runner] else f"refused, something is missing; before: {_run(log)}"
            for runner, log in zip(("v1", "v2"), logs, strict=True)
        ]
        cached = "yes" if source["hidden_cache"] else "no"
        made = dict.fromkeys(log[part] for log in logs if log for part in ("python", "kernels"))
        rows.append([release, *runs, cached, ", ".join(filter(None, made))])
    heading = ["vLLM", "V1 runner", "V2 runner", "hidden states in the KV cache"]
    return table([*heading, "Python files, kernels"], rows)


def _run(log: Mapping[str, Any] | None) -> str:
    if log is None:
        return "not run"
    if log["not_run"]:
        return f"cannot be run: {log['not_run']}"
    files = [file for file in log["files"].values() if file["passed"] or file["failed"]]
    failed = sum(len(file["failed"]) for file in files)
    count = sum(file["passed"] for file in files) + failed
    of = "1 file" if len(files) == 1 else f"{len(files)} files"
    tests = "1 test" if count == 1 else f"{count} tests"
    commits = ", ".join(sorted({file["commit"] for file in files}))
    return f"run: {tests} of {of}{f', {failed} failed' if failed else ''} ({commits})"


def failures(directory: Path, _: Sequence[str]) -> str:
    lines = []
    lacking: dict[tuple[str, ...], list[str]] = {}
    for release, source in _sources(directory).items():
        lacking.setdefault(tuple(source["lacks"]), []).append(release)
        said = []
        for runner in ("v1", "v2"):
            log = _release_log(directory, release, runner) or {"files": {}}
            for file, result in log["files"].items():
                tests: dict[str, list[str]] = {}
                for test, message in result["failed"].items():
                    tests.setdefault(" ".join(message.split()), []).append(test)
                said += [
                    f"- {runner.upper()}, `{file}`, "
                    f"{f'`{names[0]}`' if len(names) == 1 else f'{len(names)} tests'}: {message}"
                    for message, names in tests.items()
                ]
        if said:
            lines += [f"What failed with {release}:", "", *said, ""]
    for lacks, releases in lacking.items():
        if lacks:
            missing = (f"- {lack}." for lack in lacks)
            lines += [f"What is missing in {', '.join(releases)}:", "", *missing, ""]
    return "\n".join(lines).rstrip()


def _sources(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return found


def _release_log(directory: Path, release: str, runner: str) -> dict[str, Any] | None:
    path = directory / f"{release}-{runner}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
