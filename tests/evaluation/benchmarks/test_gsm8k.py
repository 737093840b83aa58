"""published:gsm8k: the published scores, and those beside them."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.registry import Registry

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.benchmarks.gsm8k_rules import gold
from slot_vllm.evaluation.config import Generation, RunConfig
from slot_vllm.evaluation.scoring import Scores, score
from tests.evaluation.conftest import ARMS

NAME = "published:gsm8k"
METRICS = ["answer", "format", "format_loose", "answer_number", "answer_and_format"]


def _load(path: Path, answers: int | None = None) -> tasks.EvaluationTask:
    task = {"name": NAME, "data": str(path), "answers": answers}
    values = {"name": "test", "model": "m", "tasks": [task], "arms": ARMS}
    run = RunConfig.model_validate(values)
    warm = Generation(temperature=0.0 if answers is None else 0.6)
    [loaded] = tasks.load(run.model_copy(update={"generation": warm}))
    return loaded


def _scores(task: tasks.EvaluationTask, index: int, *texts: str) -> Scores:
    return score(task, task.docs[index], ModelResponse(input="", text=list(texts)))


@pytest.fixture
def write(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"question": "Q?", "answer": "So it is\n#### 1,450"}))
    return path


def test_prompt(write: Path) -> None:
    task = _load(write)
    assert task.name == NAME
    [doc] = task.docs
    assert (doc.query, doc.get_golds(), doc.generation_size) == ("Q?", ["1,450"], 512)


def test_equals_the_published_scores(prompts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (prompts / "gsm8k_scores.jsonl").read_text().splitlines()]
    path = tmp_path / "golds.jsonl"
    path.write_text(
        "".join(json.dumps({"question": "?", "answer": row["gold"]}) + "\n" for row in rows)
    )
    task = _load(path)
    docs = {int(doc.id): index for index, doc in enumerate(task.docs)}
    scores = [_scores(task, docs[i], row["completion"]) for i, row in enumerate(rows)]
    assert len(scores) == 447
    assert [(s["answer"], s["format"]) for s in scores] == [
        (row["answer"], row["format"]) for row in rows
    ]
    for of_row in scores:
        assert of_row["format_loose"] >= of_row["format"]
        assert of_row["answer_and_format"] == of_row["answer"] * of_row["format"]
    # Only a sign or a separator of thousands sets the two apart.
    apart = [
        row["gold"] + row["completion"]
        for row, s in zip(rows, scores, strict=True)
        if s["answer"] != s["answer_number"]
    ]
    assert len(apart) == 5
    assert all("," in text or "-" in text for text in apart)


def test_gold_answers(benchmarks: Path) -> None:
    """The published rule fails for golds with a comma or a sign; these are all of them."""
    task = _load(benchmarks / "gsm8k_test.jsonl")
    failed = []
    for index, doc in enumerate(task.docs):
        text = f"<think>so</think><answer>{doc.get_golds()[0]}</answer>"
        scores = _scores(task, index, text)
        assert [scores[name] for name in ("format", "format_loose", "answer_number")] == [1, 1, 1]
        if not scores["answer"]:
            failed.append(doc.get_golds()[0])
    assert len(task.docs) == 1319
    signs, commas = ["-10", "-3"], [gold for gold in failed if "," in gold]
    assert sorted(failed) == sorted([*signs, *commas])
    assert len(commas) == 14


@pytest.mark.parametrize(
    ("completion", "number", "right"),
    [
        ("1,450", "1450", True),
        ("-5", "-5", True),
        ("-5", "5", False),
        ("minus: \N{MINUS SIGN}5", "-5", True),
        ("-$5.00", "-5", True),
        ("$-5", "-5", True),
        ("8-5", "5", True),
        ("(8)-5", "5", True),
        ("x = 3, 4", "4", True),
        ("1,2345", "2345", True),
        ("1,234,567.5", "1234567.5", True),
        ("1/2", "0.5", True),
        ("1/0", "0", True),
        ("+7", "7", True),
        ("from 3-5", "5", True),
        ("8 - 5", "5", True),
        ("8 -5", "5", True),
        ("(8) -5", "5", True),
        ("Answer - 18", "18", True),
        ("Answer: -18", "-18", True),
        ("the answer is -18", "-18", True),
        ("- 18", "18", True),
        ("30 \\div 2 = 15 - 3", "3", True),
        ("8\n-5", "-5", True),
        ("**-5**", "-5", True),
        ("x=-5", "-5", True),
        ("(-5)", "-5", True),
        ("\\boxed{-5}", "-5", True),
        ("<answer>-5</answer>", "-5", True),
        ("2*-5", "-5", True),
        ("A-5", "5", True),
        ("20\N{EN DASH}18", "18", True),
        ("$8$ - $5$", "5", True),
        ("$8$-5", "5", True),
        ("\\$8 - \\$5", "5", True),
        ("-\\$5", "-5", True),
        ("\\$1{,}450", "1450", True),
        ("$1\\,450$", "1450", True),
        ("1,\\!450", "1450", True),
        ("1,450.00", "1450", True),
        ("a range of 2,000-3,000", "3,000", True),
        ("seven", "7", False),
        ("", "7", False),
    ],
)
def test_numbers(tmp_path: Path, completion: str, number: str, right: bool) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([{"question": "?", "answer": f"#### {number}"}]))
    assert _scores(_load(path), 0, completion)["answer_number"] == right


@pytest.mark.parametrize(
    ("completion", "strict", "loose"),
    [
        ("<think>a</think><answer>1</answer>", 1, 1),
        ("\n<think>a</think>\n\n<answer>1</answer> ", 0, 1),
        ("<think>a</think> so <answer>1</answer>", 0, 0),
        ("<answer>1</answer><think>a</think>", 0, 0),
    ],
)
def test_formats(write: Path, completion: str, strict: int, loose: int) -> None:
    scores = _scores(_load(write), 0, completion)
    assert list(scores) == METRICS
    assert (scores["format"], scores["format_loose"]) == (strict, loose)


def test_several_answers(write: Path) -> None:
    task = _load(write, answers=4)
    assert [doc.num_samples for doc in task.docs] == [4]
    right = "<think>a</think><answer>1450</answer>"
    scores = _scores(task, 0, right, "1450", "7", "")
    assert list(scores) == [f"{name}_avg@n:n=4" for name in METRICS]
    assert list(scores.values()) == [0.5, 0.25, 0.25, 0.5, 0.25]


def test_lighteval_takes_them_as_custom_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its registry imports all of its own tasks, and one downloads.
    monkeypatch.setattr("requests.get", lambda *given, **settings: Mock(status_code=404))
    names = [NAME, "published:math_500", "ceval:law"]
    registry = Registry(tasks=",".join(names), custom_tasks="slot_vllm.evaluation.benchmarks")
    found = registry.load_tasks()
    assert sorted(found) == sorted(f"{name}|0" for name in names)
    assert [metric.metric_name for metric in found[f"{NAME}|0"].metrics] == METRICS


def test_gold() -> None:
    assert (gold("a\n#### 7 "), gold("7")) == ("7", "7")
