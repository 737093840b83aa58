"""An environment with clients that nobody here wrote, apart from the one that is tested."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from tests.uv import UV, with_pips_settings

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# Beside what get-model keeps: outside of the repository, for all its copies.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "slot-vllm/clients"


class NotInstalledError(Exception):
    """Why the clients cannot be had here."""


def clients_environment() -> Path:
    """The directory of the environment, which is made once and stays. Raises NotInstalledError."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    environment = CACHE / key
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{key}.lock"):
        done = environment / "done"
        if not done.exists():
            _run("venv", "--clear", "--python", sys.executable, str(environment))
            python = str(environment / "bin/python")
            _run("pip", "install", "--python", python, "--requirement", str(REQUIREMENTS))
            done.touch()
    return environment


def _run(*arguments: str) -> None:
    command = [*UV, *arguments, "--quiet"]
    variables = with_pips_settings()
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"uv {arguments[0]}: {done.stderr.strip()[-300:]}")
