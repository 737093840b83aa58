"""What tasks need and is not installed is named, with what brings it."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import requirements, scoring, tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.tasks import EvaluationTask
from tests.evaluation.conftest import ARMS

ROW = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
IFEVAL = "lighteval.tasks.tasks.ifeval"


@contextmanager
def not_installed(package: str, user: str) -> Iterator[None]:
    """As lighteval sees it; its module ``user`` is imported anew within, and not kept: it leaves
    out what needs the package."""
    from lighteval.utils import imports

    parent, _, child = user.rpartition(".")

    def users() -> list[str]:
        return [name for name in sys.modules if f"{name}.".startswith(f"{user}.")]

    with pytest.MonkeyPatch.context() as patch:
        before = {name: sys.modules.pop(name) for name in users()}
        real = imports.is_package_available
        patch.setattr(
            imports,
            "is_package_available",
            lambda asked: getattr(asked, "name", asked) != package and real(asked),
        )
        try:
            yield
        finally:
            for name in users():
                del sys.modules[name]
            sys.modules.update(before)
            if user in before:
                setattr(sys.modules[parent], child, before[user])


def _load(path: Path, row: Mapping[str, Any] = ROW) -> list[EvaluationTask]:
    path.write_text(json.dumps([row]))
    task = {"name": "ifeval", "data": str(path)}
    return tasks.load(
        RunConfig.model_validate({"name": "t", "model": "m", "tasks": [task], "arms": ARMS})
    )


def test_a_package() -> None:
    error = ModuleNotFoundError("No module named 'langdetect'", name="langdetect")
    assert requirements.missing(error) == (
        "it needs langdetect, which is not installed; slot-vllm[eval] brings it"
    )
    guarded = NameError("name 'emoji' is not defined", name="emoji")
    assert requirements.missing(guarded) == (
        "it needs emoji, which is not installed; lighteval[extended-tasks] brings it"
    )
    assert requirements.missing(NameError("name 'x' is not defined", name="x")) is None
    unknown = ImportError("You requested the use of `nowhere` for this evaluation, but")
    assert requirements.missing(unknown) == (
        "it needs nowhere, which is not installed; pip install nowhere brings it"
    )


def test_a_task_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "prepare", lambda folder: None)
    with (
        not_installed("langdetect", IFEVAL),
        pytest.raises(ConfigError, match=r"'ifeval': it needs langdetect, .* brings it"),
    ):
        _load(tmp_path / "data.json")


def test_what_was_imported_without_a_package_is_not_kept() -> None:
    with not_installed("langdetect", IFEVAL):
        without = importlib.import_module(f"{IFEVAL}.instructions")
        assert not hasattr(without, "langdetect")
    for _ in range(2):
        kept = importlib.import_module(f"{IFEVAL}.instructions")
        assert kept.langdetect is importlib.import_module("langdetect")
        with not_installed("langdetect", IFEVAL):
            assert importlib.import_module(f"{IFEVAL}.instructions") is not kept
        assert importlib.import_module(f"{IFEVAL}.instructions") is kept
        assert importlib.import_module(IFEVAL).instructions is kept


def test_a_scorer_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, punkt: None
) -> None:
    """lighteval imports some packages only where they are installed, and asks for them later."""
    instructions = importlib.import_module(f"{IFEVAL}.instructions")
    monkeypatch.delattr(instructions, "langdetect")
    row = {**ROW, "instruction_id_list": ["language:response_language"]}
    [task] = _load(tmp_path / "data.json", {**row, "kwargs": [{"language": "de"}]})
    with pytest.raises(ConfigError, match=r"no answer .*: it needs langdetect, .* brings it"):
        scoring.check(task)


def test_a_task_names_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda *names, **options: False)
    with pytest.raises(ConfigError, match=r"'ifeval': it needs NLTK's punkt_tab.*doctor --fix"):
        _load(tmp_path / "data.json")


def test_a_language_is_told_alike_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import langdetect
    import nltk

    monkeypatch.setattr(langdetect.DetectorFactory, "seed", None)
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    requirements.prepare("ifeval")
    assert len({langdetect.detect("ok y ha") for _ in range(30)}) == 1
