"""Runs that were asked and scored alike are told from others."""

import subprocess
import sys
from typing import Any

import pytest

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.record import TaskDefinition
from slot_vllm.evaluation.task_definition import definition, item_hash
from slot_vllm.evaluation.tasks import EvaluationTask
from tests.evaluation.conftest import PROBLEMS


def load(name: str, **settings: Any) -> EvaluationTask:
    values = {
        "name": "test",
        "model": "m",
        "generation": {"temperature": 1.0},
        "tasks": [{"name": name, "data": str(PROBLEMS), **settings}],
    }
    [task] = tasks.load(RunConfig.model_validate(values))
    return task


def defined(name: str, **settings: Any) -> TaskDefinition:
    return definition(load(name, **settings))


def test_a_task_is_the_same_whenever_it_is_loaded() -> None:
    found = defined("aime24")
    assert found == defined("aime24")
    assert found.prompt.startswith("lighteval.tasks.tasks.aime.")
    assert found.answers == 1
    assert list(found.metrics) == ["pass@k:k=1", "avg@n:n=1"]
    code = (
        "from tests.evaluation.test_task_definition import defined\n"
        "print(defined('aime24').model_dump_json())"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert TaskDefinition.model_validate_json(other.splitlines()[-1]) == found


def test_what_is_within_a_scorer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = defined("aime24").metrics
    assert defined("aime24", answers=4).answers == 4
    task = load("aime24")
    scorer = task.task.metrics[0].sample_level_fn
    # The class is as it was; one of its parameters is not.
    monkeypatch.setattr(scorer, "k", 7)
    changed = definition(task).metrics
    assert changed["pass@k:k=1"] != before["pass@k:k=1"]
    assert changed["avg@n:n=1"] == before["avg@n:n=1"]


def test_a_problem_is_its_text_and_its_gold_answers() -> None:
    first, second, *_ = load("aime24").docs
    assert item_hash(first) == item_hash(load("aime24").docs[0])
    assert item_hash(first) != item_hash(second)
    text = first.query
    first.query = text + " "
    assert item_hash(first) != item_hash(load("aime24").docs[0])
    first.query = text
    first.choices = ["another"]
    assert item_hash(first) != item_hash(load("aime24").docs[0])
