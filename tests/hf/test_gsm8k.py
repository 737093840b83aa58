"""The published GSM8K run on a tiny model, and its scoring on constructed answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.hf import gsm8k
from tests.conftest import ROOT

PROBLEMS = [
    {"question": "How much is 2 and 3?", "answer": "2 + 3 = 5\n#### 5"},
    {"question": "How much is 7 times 1000, and nothing else?", "answer": "#### 7,000"},
    {"question": "And 4 less 1?", "answer": "#### 3"},
]


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsm8k, "MAX_NEW_TOKENS", 8)
    for name in ("SLOT_STEPS", "SLOT_LR", "CHOT_STEPS", "CHOT_LR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return path


def run(model: str, data: Path, output: Path, *options: str) -> tuple[Any, list[Any]]:
    """Results and samples of a run that must succeed."""
    arguments = ["--model", model, "--data", str(data), "--output", str(output)]
    assert gsm8k.main([*arguments, "--dtype", "float32", "--device", "cpu", *options]) == 0
    results = json.loads((output / "results.json").read_text())
    assert (results["model"], results["dtype"]) == (model, "float32")
    samples = (output / "samples.jsonl").read_text().splitlines()
    return results, [json.loads(sample) for sample in samples]


@pytest.mark.parametrize(
    ("completion", "gold", "correct"),
    [
        ("<think>2 + 3</think><answer>5</answer>", "5", True),
        ("The answer is 5.0", "5", True),
        ("It is 10/2", "5", True),
        ("First 5, then 6", "5", False),
        ("7000 dollars", "7,000", True),
        ("five", "5", False),
        ("", "5", False),
        # As published, a separator of thousands ends a number.
        ("7,000", "7,000", False),
    ],
)
def test_correct(completion: str, gold: str, correct: bool) -> None:
    assert gsm8k.is_correct(completion, gold) == correct


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("<think>a\nb</think><answer>5</answer>", True),
        ("<think></think><answer></answer>", True),
        ("<think>a</think><answer>5</answer>\n", True),
        ("<think>a</think>\n<answer>5</answer>", False),
        ("<think>a</think><answer>5</answer> so", False),
        ("Well. <think>a</think><answer>5</answer>", False),
        ("<answer>5</answer>", False),
        ("", False),
    ],
)
def test_format(completion: str, correct: bool) -> None:
    assert gsm8k.is_format_correct(completion) == correct


def test_summary() -> None:
    hit = gsm8k.ScoredAnswer("q", "5", "5", True, False, 3, 2.0, 1.0)
    miss = gsm8k.ScoredAnswer("q", "5", "6", False, False, 8, 2.0, 1.0)
    result = gsm8k.summary([hit, hit, hit, miss], gsm8k.SlotConfig(steps=2, lr=0.5))
    assert result["accuracy"] == 0.75
    assert result["accuracy_stderr"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert (result["format_accuracy"], result["format_accuracy_stderr"]) == (0, 0)
    assert (result["problems"], result["truncated"]) == (4, 1)


def test_real_problems(tiny_model: str, benchmarks: Path, tmp_path: Path) -> None:
    results, samples = run(
        tiny_model, benchmarks / "gsm8k_test.jsonl", tmp_path / "run", "--limit", "5"
    )
    assert (results["problems"], results["steps"], results["lr"]) == (5, 5, 0.1)
    assert [sample["gold"] for sample in samples][:2] == ["18", "3"]
    assert all(sample["last_loss"] < sample["first_loss"] for sample in samples)


def test_a_batch_is_its_problems(tiny_model: str, data: Path, tmp_path: Path) -> None:
    _, together = run(tiny_model, data, tmp_path / "together", "--batch-size", "2")
    _, alone = run(tiny_model, data, tmp_path / "alone")
    for a, b in zip(together, alone, strict=True):
        assert a["completion"] == b["completion"]
        assert a["last_loss"] == pytest.approx(b["last_loss"], rel=1e-3)


def test_an_interrupted_run_keeps_what_is_finished(
    tiny_model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = gsm8k.answer
    calls = iter(range(2))

    def interrupted(*arguments: Any) -> list[gsm8k.ScoredAnswer]:
        if next(calls):
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(gsm8k, "answer", interrupted)
    output = tmp_path / "run"
    options = ["--model", tiny_model, "--data", str(data), "--output", str(output)]
    assert gsm8k.main([*options, "--device", "cpu"]) == 130
    assert len((output / "samples.jsonl").read_text().splitlines()) == 1
    assert not (output / "results.json").exists()


def test_settings_and_system_prompt(
    tiny_model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHOT_STEPS", "2")
    monkeypatch.setenv("CHOT_LR", "0.5")
    results, own = run(tiny_model, data, tmp_path / "own", "--lr", "0.01", "--limit", "1")
    assert (results["steps"], results["lr"]) == (2, 0.01)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Answer.")
    _, other = run(
        tiny_model, data, tmp_path / "other", "--system-prompt", str(prompt), "--limit", "1"
    )
    assert own[0]["first_loss"] != other[0]["first_loss"]
    results, plain = run(tiny_model, data, tmp_path / "plain", "--steps", "0")
    assert results["steps"] == 0
    assert plain[0]["first_loss"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "-1"], "slot.steps=-1: "),
        (["--limit", "0"], "argument --limit: 0: an integer from 1 is required"),
        (["--model", "nowhere"], "--model nowhere: "),
        (["--data", "nowhere"], "--data nowhere: "),
        (["--output", "."], "--output .: is there already"),
        (["--device", "nowhere"], "--device nowhere: "),
        (["--system-prompt", "nowhere"], "--system-prompt nowhere: "),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_bad_input(
    tiny_model: str,
    data: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gsm8k.main(["--model", tiny_model, "--data", str(data), *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no problems"),
        ("[]", "line 1: a JSON object with the texts question and answer is required"),
        ('{"question": "a", "answer": "1"}\n{', "line 2: a JSON object"),
        ('{"question": "a"}', "KeyError: 'answer'"),
    ],
)
def test_bad_data(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    assert gsm8k.main(["--model", "unused", "--data", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slot_vllm.hf.gsm8k", "--data", "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the following arguments are required")
