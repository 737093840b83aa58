"""slot-vllm init: a commented file that runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli
from slot_vllm.evaluation import config as configuration
from tests.conftest import ROOT
from tests.evaluation.conftest import PROBLEMS, RunMain
from tests.evaluation.test_tasks import QUESTIONS

CHOICES = {"question": "1+1?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
CHOICES["subject"] = "high_school_mathematics"
INSTRUCTION = {
    "prompt": "Say tree.",
    "instruction_id_list": ["keywords:existence"],
    "kwargs": [{"keywords": ["tree"]}],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_that_runs(
    tiny_model: str, run_slot_vllm: RunMain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PROBLEMS, tmp_path / "my problems.jsonl")
    assert run_slot_vllm("init", tiny_model, "my problems.jsonl") == 0
    [written] = tmp_path.glob("*.yaml")
    assert capsys.readouterr().out == f"{written.name}\n"
    text = written.read_text()
    assert len([line for line in text.splitlines() if "# " in line]) >= 8
    assert f"slot-vllm eval --config {written.name}" in text
    first = text.partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (tmp_path / first).resolve() == ROOT / "configs" / "schema.json"
    # Typed again, it is left as it is.
    written.write_text(f"{text}# mine\n")
    assert run_slot_vllm("init", tiny_model, "my problems.jsonl") == 2
    assert f"{written.name}: it exists; --output FILE" in capsys.readouterr().err
    assert written.read_text() == f"{text}# mine\n"
    short = ["--set", "generation.max_new_tokens=4", "slot.workspace_mb=64"]
    short += ["engine.enforce_eager=true", "engine.kv_cache_memory_bytes=268435456"]
    assert run_slot_vllm("eval", "--config", written, *short) == 0
    results = json.loads((tmp_path / "logs" / written.stem / "results.json").read_text())
    assert [(arm["name"], arm["samples"]) for arm in results["arms"]] == [
        ("baseline", 8),
        ("slot", 8),
    ]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (INSTRUCTION, "ifeval"),
        (QUESTIONS[0], "published:gpqa:diamond"),
        (CHOICES, "ceval"),
        ({"question": "1+1?", "answer": "1+1=2\n#### 2"}, "published:gsm8k"),
        ({"problem": "1+1?", "answer": 2}, "published:math_500"),
        ({"question": "1+1?", "solution": "So $\\boxed{2}$"}, "published:math_500"),
    ],
)
def test_the_data_say_which_task(row: dict[str, Any], task: str, punkt: None) -> None:
    data = _jsonl(Path("data.jsonl"), row, row)
    assert cli.main(["init", "some/model", data, "--output", "run.yaml"]) == 0
    config = configuration.load(Path("run.yaml"))
    assert [(t.name, t.data) for t in config.tasks] == [(task, "data.jsonl")]
    assert [arm.name for arm in config.arms] == ["baseline", "slot"]
    assert config.name == "model-data"


@pytest.mark.parametrize(
    ("name", "task"),
    [("gsm8k", "published:gsm8k"), ("gpqa:diamond", "published:gpqa:diamond"), ("gsm8k|5", "")],
)
def test_a_benchmark_by_its_name(name: str, task: str) -> None:
    assert cli.main(["init", "get:smollm2-135m", name, "--output", "run.yaml"]) == 0
    config = configuration.load(Path("run.yaml"))
    assert [(t.name, t.data) for t in config.tasks] == [(task or name, None)]
    assert config.model == "get:smollm2-135m"
    assert config.name.startswith("smollm2-135m-")


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("./nowhere", "good.jsonl", "model='./nowhere': no such path"),
        ("get:nothing", "good.jsonl", "'nothing': no such model"),
        ("m", "gms8k", "DATA='gms8k': lighteval has no such task"),
        ("m", "gms8k", "near names: gsm8k"),
        ("m", "nowhere.jsonl", "DATA='nowhere.jsonl': no such path"),
        ("m", "data/nowhere", "DATA='data/nowhere': no such path"),
        ("m", "bad.jsonl", "item 2: answer: the cell is blank"),
        ("m", "words.jsonl", "item 1: no 'problem'; required: problem, solution"),
        ("m", "empty", "no data file in this directory"),
        ("m", "good.txt", "unknown kind of file"),
    ],
)
def test_nothing_is_written_for_what_cannot_run(
    model: str, data: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"problem": "1+1?", "answer": "2"}
    _jsonl(Path("good.jsonl"), good)
    _jsonl(Path("good.txt"), good)
    _jsonl(Path("bad.jsonl"), good, {"problem": "1+2?", "answer": " "})
    _jsonl(Path("words.jsonl"), {"text": "a"})
    Path("empty").mkdir()
    assert cli.main(["init", model, data]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.glob("*.yaml"))


def test_a_context_that_is_short(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    for positions, length in ((1024, 1024), (32768, 2048)):
        (model / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
        assert cli.main(["init", "./m", "gsm8k", "--output", f"{positions}.yaml"]) == 0
        config = configuration.load(Path(f"{positions}.yaml"))
        assert config.engine["max_model_len"] == length
