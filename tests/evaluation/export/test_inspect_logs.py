"""Logs of Inspect are read back by Inspect."""

import sys
from pathlib import Path

import pytest

from slot_vllm import cli
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import export
from tests.evaluation.finished_runs import finish, half_right


def test_a_log_per_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inspect_ai.log import read_eval_log

    # Half a surrogate pair has no form in UTF-8.
    run = finish(tmp_path / "run", lambda *asked: half_right(*asked) + "\ud83d")
    capsys.readouterr()
    assert cli.main(["export", str(run), "--format", "inspect"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines() if ".eval" in line]
    assert [path.name for path in written] == ["aime24-baseline.eval", "aime24-slot.eval"]
    log = read_eval_log(str(written[1]))
    assert log.status == "success"
    assert log.eval.model == "vllm/models/tiny"
    assert log.eval.metadata is not None
    assert log.eval.metadata["slot"]["steps"] == 3
    assert log.results is not None and log.results.completed_samples == 8
    main = log.results.scores[0]
    assert (main.name, main.metrics["mean"].value) == ("pass@k:k=1", 0.5)
    assert {"lower", "upper"} <= main.metrics.keys()
    assert [score.name for score in log.results.scores][-2:] == ["truncated", "loops"]
    assert log.samples is not None and len(log.samples) == 8
    first = log.samples[0]
    assert first.scores is not None and first.scores["pass@k:k=1"].value == 1.0
    assert str(first.input).startswith("<user>")
    assert first.output.completion.startswith("So it is")
    assert {sample.output.stop_reason for sample in log.samples} == {"stop", "max_tokens"}


def test_a_packed_run_gets_its_texts_from_the_data(tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    run = finish(tmp_path / "run")
    export(run, "packed", tmp_path / "packed")
    written = export(tmp_path / "packed", "inspect")
    samples = read_eval_log(str(written[0])).samples
    assert samples is not None
    assert all(sample.input and sample.target for sample in samples)


def test_without_inspect_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    monkeypatch.delitem(sys.modules, "slot_vllm.evaluation.export.inspect_logs", raising=False)
    assert cli.main(["export", str(tmp_path), "--format", "inspect"]) == 1
    assert "needs inspect_ai, which is not installed; slot-vllm[eval]" in capsys.readouterr().err


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(ConfigError, match="it is a file; Inspect has a log per arm"):
        export(finish(tmp_path / "run"), "inspect", tmp_path / "log")
