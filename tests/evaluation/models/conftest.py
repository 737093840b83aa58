"""A tiny model as made-up wheels, which the real pip fetches from a local directory."""

import os
from pathlib import Path

import pytest

from slot_vllm.evaluation.models import catalog
from slot_vllm.evaluation.models.catalog import Model
from tests.evaluation.models.tiny import write_model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that pip takes for all there is; and an empty cache."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


@pytest.fixture
def tiny(index: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    model = write_model(index)
    monkeypatch.setitem(catalog.MODELS, "tiny", model)
    return model
