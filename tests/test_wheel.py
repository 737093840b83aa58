"""What the wheel holds, and what a package index shows of it."""

import email
import re
import tomllib
import zipfile
from datetime import date
from email.message import Message
from pathlib import Path

import pytest

from slot_vllm import __version__
from tests.conftest import ROOT, starts
from tests.wheel import build

URL = "https://example.org/slot-vllm/blob/main"


def relative_links(text: str) -> list[str]:
    return re.findall(r"\]\((?![a-z]+://)([^)]*)\)", text)


@pytest.fixture(scope="module")
@starts
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel"), SLOT_PROJECT_URL=f"{URL}/"))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    text = wheel.read(f"slot_vllm-{__version__}.dist-info/METADATA").decode()
    return email.message_from_string(text)


def test_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {
        str(Path(prefix, path.relative_to(ROOT)))
        for folder, prefix in (("slot_vllm", ""), ("configs", "slot_vllm"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert {
        "slot_vllm/py.typed",
        "slot_vllm/configs/quickstart.yaml",
        "slot_vllm/configs/data/instructions.jsonl",
        "slot_vllm/evaluation/published_results.csv",
    } <= names
    table = wheel.read("slot_vllm/evaluation/published_results.csv")
    assert table == (ROOT / "logs/published_results.csv").read_bytes()


def test_its_metadata(metadata: Message) -> None:
    assert metadata["Version"] == __version__
    assert metadata["Keywords"] and metadata["License-Expression"] == "Apache-2.0"
    urls = dict(text.split(", ") for text in metadata.get_all("Project-URL", []))
    assert urls == {"Paper": "https://arxiv.org/abs/2505.12392", "Source": URL}
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    # A licence expression and a licence classifier exclude each other.
    assert not [one for one in classifiers if one.startswith("License ::")]


def test_its_readme_has_absolute_links_only(metadata: Message) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = relative_links(readme)
    assert links and all((ROOT / link.partition("#")[0]).exists() for link in links)
    shown = metadata.get_payload()
    assert isinstance(shown, str)
    assert relative_links(shown) == []
    assert [link for link in links if f"]({URL}/{link})" not in shown] == []


def test_without_a_web_address_its_readme_has_no_dead_link(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path, SLOT_PROJECT_URL="")) as built:
        text = built.read(f"slot_vllm-{__version__}.dist-info/METADATA").decode()
    assert relative_links(text) == []
    assert "| settings |" in text and "example.org" not in text
    assert "](https://arxiv.org/abs/2505.12392)" in text


def test_the_version_is_one_and_has_its_date() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (\S+) \((.*)\)$", changelog, re.MULTILINE)
    assert releases[0][0] == __version__
    days = [date.fromisoformat(day) for _, day in releases]
    assert days == sorted(days, reverse=True)
