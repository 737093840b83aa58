"""What tasks need and is not installed is named, with what brings it."""

import json
import sys
from pathlib import Path

import pytest

from slot_vllm.evaluation import requirements, tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError
from tests.evaluation.conftest import ARMS

ROW = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def _load(path: Path) -> None:
    path.write_text(json.dumps([ROW]))
    task = {"name": "ifeval", "data": str(path)}
    tasks.load(RunConfig.model_validate({"name": "t", "model": "m", "tasks": [task], "arms": ARMS}))


def test_a_package() -> None:
    error = ModuleNotFoundError("No module named 'langdetect'", name="langdetect")
    assert "it needs langdetect, which is not installed" in requirements.missing(error)
    assert requirements.missing(error).endswith("] brings it")
    unknown = ImportError("You requested the use of `nowhere` for this evaluation, but")
    assert requirements.missing(unknown) == (
        "it needs nowhere, which is not installed; pip install nowhere brings it"
    )


def test_a_task_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lighteval.utils import imports

    for name in [name for name in sys.modules if "lighteval.tasks.tasks.ifeval" in name]:
        monkeypatch.delitem(sys.modules, name)
    real = imports.is_package_available
    monkeypatch.setattr(
        imports,
        "is_package_available",
        lambda package: "langdetect" not in str(package) and real(package),
    )
    monkeypatch.setattr(requirements, "prepare", lambda folder: None)
    with pytest.raises(ConfigError, match=r"'ifeval': it needs langdetect, .* brings it"):
        _load(tmp_path / "data.json")


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
