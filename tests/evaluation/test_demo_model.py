"""The demo model: its files, what is said of it, and runs on it as users make them."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.generation import engine_options
from slot_vllm.evaluation.lighteval_model import ModelConfig, SlotModel
from slot_vllm.evaluation.tasks import load
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import demo_problems

from tests.engine.cases import Answer, assert_tokens_equal
from tests.evaluation.conftest import RunMain

MODEL = ROOT / "models" / "demo"
PROBLEMS = ROOT / "configs" / "data" / "demo.jsonl"
RUN = Path(__file__).with_name("demo.yaml")
SETTINGS = [{"steps": 5, "lr": 0.1}, {"steps": 5, "lr": 0.01}]


def problems() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()]


def test_the_model_is_as_small_as_a_repository_can_hold() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        tensors = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
        assert {tensor.get_dtype() for tensor in tensors} == {"BF16"}
    config = AutoConfig.from_pretrained(MODEL)
    assert config.model_type == "qwen2"
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.max_position_embeddings >= 1024
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.is_fast
    text = "Größe: 2³ = 8\n\t∑ 好"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert [tokenizer.decode(i) for i in tokenizer("125").input_ids] == ["1", "2", "5"]


def test_the_held_out_problems() -> None:
    rows = problems()
    assert len(rows) >= 300
    assert len({row["problem"] for row in rows}) == len(rows)
    # Made again from the seed; none of them is a problem that the model was trained on.
    made = demo_problems.held_out()
    assert demo_problems.lines(made) == PROBLEMS.read_text(encoding="utf-8")
    trained_on = demo_problems.training(random.Random(demo_problems.SEED))
    assert not {problem.text for problem in made} & {problem.text for problem in trained_on}


@pytest.fixture
def every_eighth(tmp_path: Path) -> Path:
    """50 of the problems, of all formats."""
    return write(tmp_path, problems()[::8])


def write(directory: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = directory / "demo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("count", [16, pytest.param(400, marks=pytest.mark.full)])
def test_transformers_and_vllm_give_equal_tokens(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    rows = problems()
    data = write(tmp_path, rows[:: len(rows) // count])
    arms = [{"name": f"lr{s['lr']}", **s} for s in SETTINGS]
    settings = [f"tasks.0.data={data}", f"arms={json.dumps(arms)}"]
    monkeypatch.chdir(ROOT)
    run = configuration.load(RUN, settings)
    [task] = load(run)
    assert len(task.docs) == count
    model = SlotModel(ModelConfig(model_name=run.model), run)
    assert engine_options(run)["dtype"] == "float32"
    got = []
    for arm in run.arms:
        requests = [model.request(doc, arm) for doc in task.docs]
        answers = model.engine.generate(requests, lambda name, count: None)
        answered = {answer.request.id: answer.tokens[0] for answer in answers}
        got.append([answered[request.id] for request in requests])
    asked = {
        "model": run.model,
        "prompts": [request.prompt for request in requests],
        "settings": SETTINGS,
        "new_tokens": run.generation.max_new_tokens,
    }
    made = subprocess.run(
        [sys.executable, "-m", "tests.hf.generate"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for tokens, rows in zip(got, json.loads(made.stdout), strict=True):
        expected = [Answer(row["tokens"], row["gaps"], [], []) for row in rows]
        assert_tokens_equal(tokens, expected)
    assert got[0] != got[1]


# Kills itself once more than so many answers are kept: from outside one could come too late.
KILLED = """
import os, signal, sys
from slot_vllm.evaluation.__main__ import leave, main
from slot_vllm.evaluation.samples import SampleFile

append = SampleFile.append

def killed(self, samples):
    append(self, samples)
    if self.path.read_text().count("\\n") > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

SampleFile.append = killed
leave(main(sys.argv[2:]))
"""


def _without_times(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    results.pop("seconds")
    return results


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.full)])
def test_avg_at_16_twice_and_after_a_kill(
    run_main: RunMain,
    every_eighth: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    monkeypatch.chdir(ROOT)
    settings = [f"tasks.0.data={every_eighth}", f"tasks.0.max_samples={count}"]
    settings += ["tasks.0.answers=16", "generation.temperature=0.8"]

    def run(name: str) -> list[str]:
        return ["--config", str(RUN), "--output-dir", str(tmp_path / name)]

    for name in ("once", "again"):
        assert run_main(*run(name), "--set", *settings) == 0
    once = _without_times(tmp_path / "once")
    assert once == _without_times(tmp_path / "again")
    for entry in once["arms"]:
        assert (entry["samples"], entry["metric"]) == (count, "pass@k:k=1&n=16")
        assert "avg@n:n=16" in entry["metrics"]
        assert list(entry["pass_at_k"]) == ["1", "2", "4", "8", "16"]
    # Answers to one problem differ, so that equality means something.
    lines = (tmp_path / "once" / "samples.jsonl").read_text().splitlines()
    texts = {(s["arm"], s["id"], s["completion"]) for s in map(json.loads, lines)}
    assert len(texts) > len(lines) / 4

    # kill -9 in the middle of the second arm, which leaves half a line behind.
    command = [sys.executable, "-c", KILLED, str(16 * count), *run("killed"), "--set", *settings]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    samples = tmp_path / "killed" / "samples.jsonl"
    kept = samples.read_text()
    assert 16 * count < kept.count("\n") < 32 * count
    samples.write_text(kept + kept.splitlines()[0][:100])
    assert run_main(*run("killed"), "--set", *settings, "--resume") == 0
    assert _without_times(tmp_path / "killed") == once


@pytest.mark.full
def test_all_of_gsm8k_in_one_command(benchmarks: Path, tmp_path: Path) -> None:
    settings = [
        f"tasks=[{{name: gsm8k, data: {benchmarks / 'gsm8k_test.jsonl'}}}]",
        "generation.max_new_tokens=64",
        f"model={MODEL}",
    ]
    command = [sys.executable, "-m", "slot_vllm.evaluation", "--config", str(RUN)]
    command += ["--output-dir", str(tmp_path / "out"), "--set", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["samples"] for entry in results["arms"]] == [1319, 1319]


def test_the_config_for_a_model_and_data_of_one_s_own(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = ["slot.workspace_mb=64", "tasks.0.max_samples=8", "inspect=false"]
    settings += [
        f"model={MODEL}",
        f"tasks.0.data={PROBLEMS}",
        "engine.enforce_eager=true",
        "engine.kv_cache_memory_bytes=268435456",
    ]
    out = ["--output-dir", tmp_path / "out"]
    assert run_main("--config", "configs/local_model.yaml", *out, "--set", *settings) == 0
    baseline, slot = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert (baseline["samples"], slot["samples"]) == (8, 8)
    # It answers what it was trained for, and the answers are read.
    assert baseline["value"] > 0
    assert "format" in baseline["breakdown"]
