import ast
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import mutants
from mutants import Mutant, Outcome

MUTANTS = mutants.mutants()


def test_the_list() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40
    packages = {"params", "kernels", "optim", "engine", "evaluation"}
    assert {Path(m.file).parts[1].removesuffix(".py") for m in MUTANTS} == packages


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_changes_the_code_that_there_is(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    text = (ROOT / mutant.file).read_text()
    copy.write_text(text)
    mutant.apply(tmp_path)
    assert ast.dump(ast.parse(copy.read_text())) != ast.dump(ast.parse(text))
    with pytest.raises(ValueError, match=r"required: once"):
        Mutant("x", mutant.file, "no such line", "").apply(tmp_path)


def test_the_tests_that_execute_its_lines_the_quickest_first() -> None:
    mutant = Mutant(
        "x", "slot_vllm/presets.py", 'PRESETS: dict[str, dict[str, Any]] = {\n    "', ""
    )
    first, last = mutant.lines(ROOT)[0], mutant.lines(ROOT)[-1]
    assert last == first + 1
    contexts = {
        first: ["", "a.py::slow[x|y]"],
        last: ["b.py::quick (call)", "b.py::quick (setup)|own.py::inner", "a.py::slow[x|y]"],
        last + 1: ["c.py::other"],
    }
    found = mutants.chosen(mutant, contexts, {"a.py::slow[x|y]": 2.0, "b.py::quick": 1.0})
    assert found == ["b.py::quick", "a.py::slow[x|y]"]


def test_a_copy_has_all_that_is_tracked(tmp_path: Path) -> None:
    files = [name for name in mutants.tracked() if (ROOT / name).exists()]
    assert any((ROOT / name).is_symlink() for name in files)
    mutants.key_of(MUTANTS[0], files)
    tree = mutants._copy(files, tmp_path)
    assert all((tree / name).exists() for name in files)


def test_only_what_passes_without_the_mutant_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    for name, text in (
        ("slot_vllm/__init__.py", "LEFT, RIGHT, UNSEEN = 1, 2, 3\n"),
        (
            "tests/test_both.py",
            "import slot_vllm\ndef test_left(): assert slot_vllm.LEFT == 1\n"
            "def test_fails(): assert slot_vllm.RIGHT == 1\n"
            "def test_changes(): slot_vllm.UNSEEN = 4\n"
            "def test_alone(): assert slot_vllm.UNSEEN == 3\n",
        ),
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    monkeypatch.setattr(mutants, "ROOT", repository)
    monkeypatch.setattr(mutants, "SUITE", ["tests", "-k", "left"])
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    files = ["slot_vllm/__init__.py", "tests/test_both.py"]
    left, fails, changes, alone = (
        f"tests/test_both.py::test_{name}" for name in ("left", "fails", "changes", "alone")
    )
    passing: set[str] = set()

    def met(old: str, new: str, *tests: str) -> tuple[str, str]:
        mutant = Mutant("x", files[0], old, new)
        return mutants.meet(mutant, tests, files, tmp_path / "copy", passing)

    assert met("= 1", "= 2", left) == ("died", left)
    assert passing == {left}
    # By a test before it.
    broken = ("error", f"{alone}, which fails without the mutant, too")
    assert met("2, 3", "5, 3", changes, alone) == broken
    assert met("2, 3", "3, 3", fails) == ("error", f"{fails}, which fails without the mutant, too")
    assert met("3\n", "4\n", left) == ("survived", "the whole suite")
    assert passing == {left}


def test_the_last_line_of_each_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "LOG", tmp_path / "log")
    first, second = MUTANTS[:2]
    lines = [
        Outcome(first.name, "survived", "the whole suite", 3, 1.0, "abc", "1"),
        Outcome(second.name, "died", "a.py::test", 3, 1.0, "abc", "2"),
    ]
    (tmp_path / "log").write_text("".join(json.dumps(asdict(one)) + "\n" for one in lines))
    assert mutants.report() == 1
    said = capsys.readouterr().out
    assert said.startswith(f"1 of 2 mutants died; {len(MUTANTS) - 2} were not run")
    assert f"{first.name}: survived (the whole suite); not explained" in said
    with (tmp_path / "log").open("a") as log:
        log.write(json.dumps(asdict(Outcome(first.name, "died", "x", 3, 1.0, "abd", "3"))) + "\n")
    assert mutants.report() == 0
