"""A scorer that fails on an answer: the answer is kept, the run goes on, and its end says so."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli
from slot_vllm.evaluation.__main__ import main
from slot_vllm.evaluation.generation import Completion, OnTokens, Request
from tests.evaluation.conftest import PROBLEMS, WriteConfig
from tests.evaluation.test_before_the_engine import PROMPT, TASK

# Fails on some answers until a file says that the scorer was mended.
SCORE = """
        import pathlib
        [text] = model_response.final_text
        if "fail" in text and not pathlib.Path({mended!r}).exists():
            raise IndexError("no such\\nitem")
        return 1.0
"""


class Stub:
    """Fails to please the scorer where ``bad`` says so, of a request's arm and problem."""

    max_model_len = 2048

    def __init__(self, bad: Callable[[str, str], bool]) -> None:
        self._bad = bad

    def generate(self, requests: Sequence[Request], on_tokens: OnTokens) -> Iterator[Completion]:
        for request in requests:
            arm, _, problem = request.id.split("/")[:3]
            text = "fail" if self._bad(arm, problem) else "fine"
            yield Completion(request, [text], [[1, 2]], ["stop"], [2.0, 1.0])


@pytest.fixture
def run(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """run(bad, *arguments): the exit code of a run into ``out``."""
    score = SCORE.format(mended=str(tmp_path / "mended")).strip()
    (tmp_path / "custom.py").write_text(TASK.format(prompt=PROMPT, score=score, stop="[]"))
    config = write_config(
        custom_tasks=str(tmp_path / "custom.py"),
        tasks=[{"name": "mine", "data": str(PROBLEMS)}],
        inspect=False,
    )

    def run(bad: Callable[[str, str], bool], *arguments: str) -> int:
        engine = "slot_vllm.evaluation.lighteval_model.VllmEngine"
        monkeypatch.setattr(engine, lambda options: Stub(bad))
        return main(["--config", str(config), "--output-dir", str(tmp_path / "out"), *arguments])

    return run


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["arms"])


def test_one_answer_that_cannot_be_scored(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(lambda arm, problem: (arm, problem) == ("slot", "3")) == 1
    captured = capsys.readouterr()
    said = captured.err.splitlines()
    named = "mine, problem 3 (its own id: 4): the answer of slot cannot be scored: IndexError: no"
    assert sum(named in line for line in said) == 1
    assert named in (out / "run.log").read_text()
    assert said[-1].startswith("error: ")
    assert "the answers to 1 of 16 problems (of all arms together) could not be scored" in said[-1]
    assert f"`slot-vllm rescore {out}`, or --resume" in said[-1]
    assert "8 (1 not scored)" in captured.out
    baseline, slot = _rows(out / "results.json")
    assert (baseline["samples"], baseline["unscored"], baseline["value"]) == (8, 0, 1.0)
    assert (slot["samples"], slot["unscored"], slot["value"]) == (8, 1, 1.0)
    assert slot["metrics"]["truncated"]["value"] == 0
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    [bad] = [sample for sample in samples if sample["score"] is None]
    assert (bad["arm"], bad["id"], bad["completion"]) == ("slot", "3", "fail")
    assert bad["scores"] == {"truncated": 0, "loops": 0}
    assert (out / "report.html").exists()

    # Nothing is asked again: a scorer that still fails, and one that was mended.
    capsys.readouterr()
    assert run(lambda arm, problem: True, "--resume") == 1
    assert named in capsys.readouterr().err
    assert cli.main(["rescore", str(out)]) == 0
    assert "the answers to 1 of 16 problems" in capsys.readouterr().out
    (tmp_path / "mended").touch()
    assert cli.main(["rescore", str(out)]) == 0
    assert "could not be scored" not in capsys.readouterr().out
    assert [row["unscored"] for row in _rows(out / "results.rescored.json")] == [0, 0]
    assert [row["unscored"] for row in _rows(out / "results.json")] == [0, 1]
    assert run(lambda arm, problem: True, "--resume") == 0
    assert [row["unscored"] for row in _rows(out / "results.json")] == [0, 0]


def test_no_answer_that_can_be_scored(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda arm, problem: True) == 1
    captured = capsys.readouterr()
    assert "the answers to 16 of 16 problems" in captured.err.splitlines()[-1]
    rows = _rows(tmp_path / "out" / "results.json")
    assert [(row["metric"], row["value"], row["unscored"]) for row in rows] == [
        ("mine", None, 8)
    ] * 2
    assert "8 (8 not scored)" in captured.out


def test_what_a_selection_was_made_on_counts_too(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep={steps: [0, 1, 2], lr: [0.1]}", "select.split=0.25", "arms=[]"]
    assert run(lambda arm, problem: arm == "steps1-lr0.1", "--set", *sweep) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    [found] = results["sweeps"]
    assert (found["best"], found["problems"]) == ("steps2-lr0.1", 2)
    assert [(cell["arm"], cell["unscored"]) for cell in found["cells"]] == [
        ("baseline", 0),
        ("steps1-lr0.1", 2),
        ("steps2-lr0.1", 0),
    ]
    assert "the answers to 2 of 18 problems" in capsys.readouterr().err.splitlines()[-1]


def test_answers_from_elsewhere(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    lines = [{"id": i, "completion": "fail" if i == 5 else "fine"} for i in range(8)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["score", "--task", "mine", "--custom-tasks", str(tmp_path / "custom.py")]
    command += ["--data", str(PROBLEMS), "--answers", str(answers), "--json"]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert "mine, problem 5 (its own id: 6): its answer cannot be scored" in captured.err
    assert "the answers to 1 of 8 problems" in captured.err.splitlines()[-1]
    found = json.loads(captured.out)
    assert (found["unscored"], found["metrics"]["mine"]["value"]) == (1, 1.0)
