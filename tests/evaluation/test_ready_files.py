"""The ready configs and their data are found in any directory."""

from pathlib import Path

import pytest

from slot_vllm.bench.burst import SHAPES
from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation import published_table, ready_files, tasks
from slot_vllm.evaluation.errors import ConfigError
from tests.conftest import ROOT

CONFIG = Path("configs/quickstart.yaml")


def test_a_ready_config_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, punkt: None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configuration.load(CONFIG, ["model=."])
    configuration.check_paths(config)
    # As written, so that a run's own file says nothing of this machine.
    assert config.tasks[0].data == "configs/data/instructions.jsonl"
    [task] = tasks.load(config)
    lines = (ROOT / "configs/data/instructions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(task.docs) == len(lines)


def test_the_users_own_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CONFIG.parent.mkdir()
    CONFIG.write_text("name: mine\n")
    assert ready_files.find(CONFIG) == CONFIG
    with pytest.raises(ConfigError, match=r"configs/quickstart\.yaml: "):
        configuration.load(CONFIG)


@pytest.mark.parametrize("path", ["quickstart.yaml", "configs/none.yaml", "other/quickstart.yaml"])
def test_other_paths_are_not_looked_for(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{path}: no such file"):
        configuration.load(Path(path))


def test_the_packages_files_are_the_repositorys() -> None:
    assert SHAPES.samefile(ROOT / "configs/shapes")
    assert published_table.TABLE.samefile(ROOT / "logs/published_results.csv")
