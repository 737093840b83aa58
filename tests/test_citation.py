"""CITATION.cff names this release and the paper."""

import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from setup import PAPER
from tests.conftest import ROOT
from tests.uv import UV, with_pips_settings

CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_it_is_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert CITATION["version"] == project["version"]
    assert CITATION["license"] == project["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {CITATION['version']} ({CITATION['date-released']})" in changelog


def test_it_names_the_paper() -> None:
    [paper] = CITATION["references"]
    assert paper["url"] == PAPER
    assert paper["doi"].endswith(PAPER.rpartition("/")[2])


@pytest.mark.full
def test_it_is_of_the_citation_files_schema() -> None:
    """In an environment of its own: cffconvert wants an old jsonschema."""
    tool = [*UV, "tool", "run", "cffconvert==2.0.0"]
    options: dict[str, Any] = {"env": with_pips_settings(), "capture_output": True, "text": True}
    if subprocess.run([*tool, "--version"], check=False, **options).returncode:
        pytest.skip("cffconvert cannot be installed")
    done = subprocess.run([*tool, "--validate"], cwd=ROOT, check=False, **options)
    assert done.returncode == 0, done.stderr
