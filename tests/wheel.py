"""This package's wheel, as a release builds it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "slot_vllm", "configs")
TABLE = "logs/published_results.csv"


def build(folder: Path, **environment: str) -> Path:
    """Builds in a copy, for a build leaves files beside the sources; returns the wheel."""
    source = folder / "source"
    for name in PARTS:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, symlinks=True, ignore=ignored)
        else:
            source.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, source)
    (source / TABLE).parent.mkdir()
    shutil.copy(ROOT / TABLE, source / TABLE)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        env={**os.environ, **environment},
        check=True,
    )
    [wheel] = folder.glob("*.whl")
    return wheel
