"""Directories of runs whose answers were made up, but scored and written as a run does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.directory import RunDirectory, write_results
from slot_vllm.evaluation.plan import Plan
from slot_vllm.evaluation.record import Sample
from slot_vllm.evaluation.run_settings import text_hash
from slot_vllm.evaluation.scoring import graded, score_stored
from slot_vllm.evaluation.task_definition import item_hash
from tests.evaluation.conftest import ARMS, PROBLEMS

# Of an arm's name, a problem's number in the task, and its gold answer.
Answer = Callable[[str, int, str], str]


def half_right(arm: str, number: int, gold: str) -> str:
    """SLOT is right on the even problems, the baseline on the first alone."""
    right = number % 2 == 0 if arm == "slot" else number == 0
    return f"So it is $\\boxed{{{gold if right else -1}}}$."


def finish(path: Path, answer: Answer = half_right, **settings: Any) -> Path:
    """Writes the directory of a run of one answer per problem, and returns it."""
    values = {
        "name": "made_up",
        "model": "models/tiny",
        "tasks": [{"name": "aime24", "data": str(PROBLEMS)}],
        "arms": ARMS,
    }
    config = RunConfig.model_validate({**values, **settings})
    loaded = tasks.load(config)
    samples = [
        Sample(
            arm=arm.name,
            task=task.name,
            id=doc.id,
            sample=0,
            prompt=f"<user>{doc.query}</user>",
            prompt_sha256=text_hash(f"<user>{doc.query}</user>"),
            item_sha256=item_hash(doc),
            completion=answer(arm.name, number, doc.get_golds()[0]),
            gold=doc.get_golds(),
            score=None,
            scores={},
            steps=arm.steps,
            lr=arm.lr,
            first_loss=2.123456789 if arm.steps else None,
            last_loss=1.123456789 if arm.steps else None,
            seed=number,
            finish_reason="length" if number == 3 else "stop",
            prompt_tokens=10,
            generated_tokens=20,
            seconds=1.5,
        )
        for arm in config.all_arms
        for task in loaded
        for number, doc in enumerate(task.docs)
    ]
    plan = Plan(config, loaded, samples)
    for part in plan.parts:
        for doc in part.docs:
            scores = score_stored(part.task, doc, part.samples[doc.id])
            part.scores[doc.id] = scores
            part.samples[doc.id] = graded(part.samples[doc.id], scores)
    directory = RunDirectory(path)
    directory.open(config, resume=False)
    directory.samples.rewrite(sample for part in plan.parts for sample in part.answered)
    write_results(plan.record(), directory.results)
    return path
