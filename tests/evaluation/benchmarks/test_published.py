"""published:*: the prompts and the scorer of lighteval 0.8.1.

``lighteval_published.json`` is what scripts/check_published_tasks.py recorded of that release:
hashes of prompts and gold answers (the texts stay out of the repository) and of its patterns.
"""

import hashlib
import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest
from lighteval.models.model_output import ModelResponse

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.benchmarks.extractive_match import patterns
from slot_vllm.evaluation.benchmarks.published import SETTINGS
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.scoring import score
from tests.conftest import ROOT
from tests.evaluation.conftest import ARMS

questions = runpy.run_path(str(ROOT / "scripts" / "check_published_tasks.py"))["questions"]
RECORDED = json.loads(Path(__file__).with_name("lighteval_published.json").read_text())
FILES = {"aime24": "aime24.jsonl", "math_500": "math500.jsonl"}
ASKED = "Therefore, the final answer is: $\\boxed{{{}}}$. I hope it is correct"


def _load(name: str, path: Path, **task: Any) -> tasks.EvaluationTask:
    values = {"name": "test", "model": "m", "arms": ARMS}
    named = {"name": f"published:{name}", "data": str(path), **task}
    [loaded] = tasks.load(RunConfig.model_validate({**values, "tasks": [named]}))
    loaded.docs.sort(key=lambda doc: int(doc.id))
    return loaded


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _problems(task: tasks.EvaluationTask) -> list[str]:
    return [_digest(f"{doc.query}\0{doc.get_golds()[0]}") for doc in task.docs]


def _score(task: tasks.EvaluationTask, index: int, text: str) -> float:
    scores = score(task, task.docs[index], ModelResponse(input="", text=[text]))
    assert list(scores) == ["extractive_match"]
    return float(scores["extractive_match"])


@pytest.fixture
def gpqa(tmp_path: Path) -> tasks.EvaluationTask:
    path = tmp_path / "gpqa.json"
    path.write_text(json.dumps(questions()))
    return _load("gpqa:diamond", path)


@pytest.mark.parametrize("name", FILES)
def test_prompts(benchmarks: Path, name: str) -> None:
    task = _load(name, benchmarks / FILES[name])
    assert _problems(task) == RECORDED[name]["problems"]
    assert {doc.generation_size for doc in task.docs} == {32768}
    assert {doc.instruction for doc in task.docs} == {None}


def test_prompts_of_gpqa(gpqa: tasks.EvaluationTask) -> None:
    assert len(gpqa.docs) == 60
    assert _problems(gpqa) == RECORDED["gpqa:diamond"]["problems"]


def test_gpqa_draws_from_the_global_random(tmp_path: Path) -> None:
    path = tmp_path / "gpqa.json"
    path.write_text(json.dumps(questions(4)))
    random.seed(99)
    first = _load("gpqa:diamond", path)
    assert [doc.query for doc in first.docs] == [
        doc.query for doc in _load("gpqa:diamond", path).docs
    ]


@pytest.mark.parametrize("name", ["aime24", "math_500", "gpqa:diamond"])
def test_patterns(gpqa: tasks.EvaluationTask, name: str) -> None:
    settings = SETTINGS[name]
    found = {
        side: [
            [pattern.pattern, pattern.flags, rank]
            for of_target, _ in patterns(settings, gpqa.docs[0], targets)
            for pattern, rank in of_target
        ]
        for side, targets in (
            ("gold", settings.gold_extraction_target),
            ("pred", settings.pred_extraction_target),
        )
    }
    assert _digest(json.dumps(found)) == RECORDED[name]["patterns"]


def test_aime_2025_is_asked_as_2024(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([{"Problem": "1 + 1?", "Answer": 2}]))
    once, again = (_load(name, path).docs[0] for name in ("aime24", "aime25"))
    assert once.query == again.query
    assert once.query.endswith("\n\n1 + 1?")
    assert once.get_golds() == again.get_golds() == ["2"]


def test_the_answer_is_read_with_its_reasoning(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([{"problem": "1 + 1?", "answer": "$2$ it is", "solution": "$2$"}]))
    task = _load("math_500", path)
    assert _score(task, 0, "<think>$\\boxed{2}$</think>") == 1
    assert _score(task, 0, "<think>$\\boxed{2}$</think> $\\boxed{3}$") == 0
    assert _score(task, 0, "") == 0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Answer: {}", 1),
        ("**Answer: {}**", 1),
        ("The final answer is {}. I hope it is correct", 1),
        ("{}", 1),
        # Later releases read the letter that starts a line; 0.8.1 takes the last one anywhere.
        ("So.\n{}. It beats Z", 1),
        ("none", 0),
        ("", 0),
    ],
)
def test_letters(gpqa: tasks.EvaluationTask, text: str, right: int) -> None:
    for index, doc in enumerate(gpqa.docs[:8]):
        [gold] = doc.get_golds()
        assert _score(gpqa, index, text.format(gold)) == right
        other = "B" if gold != "B" else "C"
        assert _score(gpqa, index, text.format(other)) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_gold_answer_as_the_prompt_asks(benchmarks: Path, name: str) -> None:
    task = _load(name, benchmarks / FILES[name])
    assert ASKED.format("ANSWER") in task.docs[0].query.replace("'", "")
    golds = [doc.get_golds()[0] for doc in task.docs]
    bare = [gold.removeprefix("$\\boxed{").removesuffix("}$") for gold in golds]
    scores = [_score(task, index, ASKED.format(gold)) for index, gold in enumerate(bare)]
    assert [bare[i] for i, value in enumerate(scores) if value != 1] == []
    assert len(scores) == {"aime24": 30, "math_500": 500}[name]
