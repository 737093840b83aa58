"""CONTRIBUTING.md and docs/method.md name files and functions that there are."""

import ast
import re

import pytest

from tests.conftest import ROOT

CHANGES = (
    "A setting of a request that the optimizer reads",
    "A release of vLLM",
    "An optimizer",
    "A task",
    "A metric",
    "A kernel",
)
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# In code, what has a slash or ends as a file's name does.
NAMED = {
    word
    for code in re.findall(r"`([^`\n]+)`", PAGE)
    for word in code.split()
    if "/" in word or word.endswith((".py", ".md", ".sh", ".toml", ".json"))
}
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[([^]]+)\]\(\.\./(slot_vllm/[\w/]+\.py)\)", METHOD)


def test_the_six_changes_each_have_files() -> None:
    sections = dict(zip(CHANGES, re.split(r"^### .+$", PAGE, flags=re.M)[1:], strict=True))
    assert [f"### {name}" for name in CHANGES] == re.findall(r"^### .+$", PAGE, re.M)
    for name, text in sections.items():
        assert any(path in text for path in NAMED if path.startswith("slot_vllm/")), name


@pytest.mark.parametrize("path", sorted(NAMED))
def test_a_file_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_a_setting_takes_five_files() -> None:
    text = PAGE.partition(f"### {CHANGES[0]}")[2].partition("###")[0]
    assert len(re.findall(r"^\d+\. ", text, re.M)) <= 5


@pytest.mark.parametrize(("text", "path"), LINKS)
def test_the_method_names_what_a_file_defines(text: str, path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    named = {name for name in re.findall(r"`([\w.]+)`", text) if not name.endswith(".py")}
    assert {name.rpartition(".")[2] for name in named} <= defined
