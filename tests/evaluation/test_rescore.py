"""Stored answers scored again: what is written, what is said, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import export
from slot_vllm.evaluation.rescore import RESCORED, rescore
from tests.evaluation.conftest import PROBLEMS
from tests.evaluation.finished_runs import finish
from tests.evaluation.stored_runs import LAST_RELEASE


def results(path: Path) -> Any:
    return json.loads(path.read_text())


def test_todays_scorers_give_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finish(tmp_path / "run")
    before = (run / "results.json").read_bytes()
    capsys.readouterr()
    assert cli.main(["rescore", str(run)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "aime24, " in line]
    assert said == [
        "aime24, pass@k:k=1: 0 of 16 scores changed; baseline 0.1250, slot 0.5000",
        "aime24, avg@n:n=1: 0 of 16 scores changed; baseline 0.1250, slot 0.5000",
        "aime24, truncated: 0 of 16 scores changed; baseline 0.1250, slot 0.1250",
        "aime24, loops: 0 of 16 scores changed; baseline 0.0000, slot 0.0000",
    ]
    assert (run / "results.json").read_bytes() == before
    assert results(run / RESCORED) == results(run / "results.json")


def test_what_changed_is_said_and_the_old_results_stay(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    # As if an earlier scorer had taken the baseline's second answer for right.
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    lines[1] |= {"score": 1.0, "scores": {**lines[1]["scores"], "pass@k:k=1": 1.0}}
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    old = results(run / "results.json")
    old["arms"][0]["metrics"]["pass@k:k=1"]["value"] = old["arms"][0]["value"] = 0.25
    (run / "results.json").write_text(json.dumps(old))
    said = rescore(run)
    assert said[0] == (
        "aime24, pass@k:k=1: 1 of 16 scores changed; baseline 0.2500 -> 0.1250, slot 0.5000"
    )
    assert results(run / "results.json") == old
    assert results(run / RESCORED)["arms"][0]["value"] == 0.125


def test_a_packed_run_and_one_of_the_last_release(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    export(run, "packed", tmp_path / "packed")
    assert rescore(tmp_path / "packed")[0].startswith("aime24, pass@k:k=1: 0 of 16")
    old = results(run / "results.json")["arms"]
    assert results(tmp_path / "packed" / RESCORED)["arms"][1]["value"] == old[1]["value"]
    shutil.copytree(LAST_RELEASE / "quickstart", tmp_path / "quickstart")
    said = rescore(tmp_path / "quickstart")
    assert said[0] == "aime24, pass@k:k=1: 0 of 800 scores changed; baseline 0.5300, slot 0.4675"
    assert said[2].startswith("aime24, truncated: new; ")
    # Its release did not record what asked.
    [definition] = results(tmp_path / "quickstart" / RESCORED)["tasks"].values()
    assert definition["prompt"] == "not recorded"
    assert definition["metrics"]


def test_a_task_of_several(tmp_path: Path) -> None:
    tasks = [{"name": name, "data": str(PROBLEMS)} for name in ("aime24", "aime25")]
    run = finish(tmp_path / "run", tasks=tasks)
    rescore(run, "aime25")
    assert {row["task"] for row in results(run / RESCORED)["arms"]} == {"aime25"}
    with pytest.raises(ConfigError, match=r"--task gsm8k: .*several tasks; allowed: one of aime24"):
        rescore(run, "gsm8k")


def test_another_task_scores_the_answers_to_the_same_data(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    said = rescore(run, "aime25")
    assert said[0] == "aime25, pass@k:k=1&n=1: new; baseline 0.1250, slot 0.5000"
    [baseline, _] = results(run / RESCORED)["arms"]
    assert baseline["task"] == "aime25"
    # It scores; what was asked is what the other task asked.
    known, asked = results(run / RESCORED)["tasks"], results(run / "results.json")["tasks"]
    assert known["aime25"]["prompt"] == asked["aime24"]["prompt"]
    assert known["aime25"]["metrics"].keys() == {"pass@k:k=1&n=1", "avg@n:n=1"}
    rescore(run, "published:aime24")
    [published] = results(run / RESCORED)["tasks"].values()
    assert published["prompt"] == asked["aime24"]["prompt"]
    assert published["metrics"].keys() == {"extractive_match"}
    with pytest.raises(ConfigError, match="lighteval has no such task"):
        rescore(run, "no_such_task")


def test_other_data_or_too_few_answers_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(PROBLEMS.read_text())
    run = finish(tmp_path / "run", tasks=[{"name": "aime24", "data": str(data)}])
    text = (run / "samples.jsonl").read_text()
    (run / "samples.jsonl").write_text("".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match="slot has no answers to 1 of 8 problems of aime24"):
        rescore(run)
    (run / "samples.jsonl").write_text(text)
    data.write_text(PROBLEMS.read_text().replace("letters", "signs"))
    with pytest.raises(ConfigError, match="another text or gold answer than what was answered"):
        rescore(run)
    assert not (run / RESCORED).exists()
