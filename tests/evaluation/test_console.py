"""``run.log`` is there at once, its path is said, and bad input leaves no trace in it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation.__main__ import main
from slot_vllm.evaluation.console import run_log
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from tests.evaluation.conftest import WriteConfig


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    logging.captureWarnings(False)


def test_the_log_is_there_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a" / "b" / "run.log"
    with run_log(path):
        assert capsys.readouterr().err == f"log: {path}\n"
        logging.getLogger("vllm").info("a detail")
        assert "a detail" in path.read_text()
        assert capsys.readouterr().err == ""
    # The next run adds to it.
    with pytest.raises(RunFailed), run_log(path):
        raise RunFailed("memory")
    assert path.read_text().count("log: ") == 2


@pytest.mark.parametrize("earlier", [None, "long ago\n"])
def test_bad_input_leaves_no_trace(earlier: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.log"
    if earlier is not None:
        path.parent.mkdir(parents=True)
        path.write_text(earlier)
    with pytest.raises(ConfigError), run_log(path):
        logging.getLogger("vllm").info("a detail")
        raise ConfigError("a typo")
    if earlier is None:
        assert not list(tmp_path.iterdir())
    else:
        assert path.read_text() == earlier


def test_what_others_wrote_beside_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run.log"
    with pytest.raises(ConfigError), run_log(path):
        (tmp_path / "a" / "notes").write_text("mine")
        raise ConfigError("a typo")
    assert [file.name for file in path.parent.iterdir()] == ["notes"]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with (
        pytest.raises(ConfigError, match=r"run\.log: cannot be written: "),
        run_log(tmp_path / "a" / "b" / "run.log"),
    ):
        pass


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """no_start(error): vLLM's start ends with that."""

    def arrange(error: BaseException) -> None:
        def start(_options: Any) -> Any:
            raise error

        monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", start)

    return arrange


def test_a_start_that_failed_can_be_tried_again(
    write_config: WriteConfig,
    no_start: Callable[[BaseException], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["--config", str(write_config()), "--output-dir", str(out)]
    no_start(RunFailed("vLLM did not start"))
    for times in (1, 2):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"log: {out / 'run.log'}\n")
        assert "reading the problems: " in said
        assert said.endswith("error: vLLM did not start\n")
        assert [file.name for file in out.iterdir()] == ["run.log"]
        assert (out / "run.log").read_text().count("starting vLLM with") == times
    no_start(ConfigError("engine: vLLM refuses"))
    assert main(command) == 2
    assert (out / "run.log").read_text().count("starting vLLM with") == 2
