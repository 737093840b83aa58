"""The packed form: what it leaves out, and that a run is read and continued from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm.evaluation import report
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import export
from slot_vllm.evaluation.samples import SampleFile
from tests.evaluation.conftest import PROBLEMS, RunMain, WriteConfig
from tests.evaluation.finished_runs import finish
from tests.evaluation.stored_runs import LAST_RELEASE

PROMPT = "Say nothing of this sentence."


def without_times(directory: Path) -> Any:
    values = json.loads((directory / "results.json").read_text())
    values.pop("seconds")
    for entry in values["arms"]:
        entry.pop("first_loss"), entry.pop("last_loss")  # of four digits in the packed form
    return values


def test_it_holds_no_text_of_the_benchmark(tmp_path: Path) -> None:
    run = finish(tmp_path / "run", lambda *_: "5", system_prompt=PROMPT)
    (run / "inspection.json").write_text((LAST_RELEASE / "quickstart/inspection.json").read_text())
    packed = tmp_path / "packed"
    names = {path.name for path in export(run, "packed", packed)}
    assert names == {"config.yaml", "inspection.json", "results.json", "samples.jsonl.gz"}
    samples = SampleFile(packed / "samples.jsonl").read()
    texts = "".join(
        [path.read_text() for path in packed.iterdir() if path.suffix != ".gz"]
        + [json.dumps(sample.model_dump()) for sample in samples]
    )
    for line in PROBLEMS.read_text().splitlines():
        assert json.dumps(json.loads(line)["problem"])[1:-1] not in texts
    assert PROMPT not in texts
    assert "<user>" not in texts
    assert json.loads((packed / "inspection.json").read_text())[0]["prompts"] == []
    whole = {sample.key: sample for sample in SampleFile(run / "samples.jsonl").read()}
    assert {sample.key for sample in samples} == whole.keys()
    for sample in samples:
        kept = whole[sample.key]
        assert (sample.prompt, sample.gold) == (None, None)
        assert sample.prompt_sha256 == kept.prompt_sha256
        assert (sample.completion, sample.scores) == (kept.completion, kept.scores)


def test_the_last_releases_run_is_packed_small(tmp_path: Path) -> None:
    run = LAST_RELEASE / "quickstart"
    files = export(run, "packed", tmp_path / "packed")
    assert sum(path.stat().st_size for path in files) < 70_000
    found = report.write([tmp_path / "packed"]).read_text()
    assert "0.4675" in found


def test_a_report_joins_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(PROBLEMS.read_text())
    run = finish(tmp_path / "run", tasks=[{"name": "aime24", "data": str(data)}])
    export(run, "packed", tmp_path / "packed")
    problem = json.loads(PROBLEMS.read_text().splitlines()[0])["problem"].split(".")[0]
    assert problem in report.write([tmp_path / "packed"]).read_text()
    data.unlink()
    assert "packed answers hold no prompts" in report.write([tmp_path / "packed"]).read_text()
    # And it is the same run as the whole one, problem by problem.
    both = report.write([run, tmp_path / "packed"], tmp_path / "both.html").read_text()
    assert "no problem with the same id and prompt" not in both
    assert "every problem scored the same" in both


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    with pytest.raises(ConfigError, match="it is the run's own directory"):
        export(run, "packed", run)
    with pytest.raises(ConfigError, match="it is there already"):
        export(run, "packed", tmp_path)


def test_a_packed_run_is_resumed(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, whole, packed = (
        write_config(system_prompt=PROMPT),
        tmp_path / "run",
        tmp_path / "packed",
    )
    assert run_main("--config", config, "--output-dir", whole) == 0
    export(whole, "packed", packed)
    assert "sha256:" in yaml.safe_load((packed / "config.yaml").read_text())["system_prompt"]
    capsys.readouterr()
    other = ["--config", write_config(system_prompt="Another."), "--output-dir", packed, "--resume"]
    assert run_main(*other) == 2
    assert "system_prompt=" in capsys.readouterr().err

    def no_engine(_options: Any) -> Any:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", no_engine)
    config = write_config(system_prompt=PROMPT)
    assert run_main("--config", config, "--output-dir", packed, "--resume") == 0
    assert without_times(packed) == without_times(whole)
    # What it asked stands in it again.
    assert not (packed / "samples.jsonl.gz").exists()
    assert all(sample.prompt for sample in SampleFile(packed / "samples.jsonl").read())
    # Answers to other prompts are not taken for these.
    export(packed, "packed", tmp_path / "again")
    file = SampleFile(tmp_path / "again" / "samples.jsonl")
    lines = [{**sample.model_dump(), "prompt_sha256": "0"} for sample in file.read()]
    file.packed.unlink()
    file.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert run_main("--config", config, "--output-dir", tmp_path / "again", "--resume") == 2
    assert "needs the same data" in capsys.readouterr().err
