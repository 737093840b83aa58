"""``published:gsm8k``: the published GSM8K run's prompt and its two scores, with three beside
them."""

from typing import Any

from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation.benchmarks import gsm8k_rules as rules
from slot_vllm.evaluation.benchmarks.raw_text import metric

SYSTEM_PROMPT = rules.SYSTEM_PROMPT


def prompt(line: dict[str, Any], task_name: str = "") -> Doc:
    """The question alone; the system prompt says how to answer."""
    return Doc(
        task_name=task_name,
        query=line["question"],
        choices=[rules.gold(line["answer"])],
        gold_index=0,
    )


def _gold(doc: Doc) -> str:
    return doc.get_golds()[0]


def _answer(text: str, doc: Doc) -> float:
    return rules.is_correct(text, _gold(doc))


def _format(text: str, doc: Doc) -> float:
    return rules.is_format_correct(text)


def _format_loose(text: str, doc: Doc) -> float:
    return rules.is_format_loosely_correct(text)


def _answer_number(text: str, doc: Doc) -> float:
    return rules.is_number_correct(text, _gold(doc))


def _answer_and_format(text: str, doc: Doc) -> float:
    return rules.is_correct(text, _gold(doc)) and rules.is_format_correct(text)


TASK = LightevalTaskConfig(
    name="published:gsm8k",
    prompt_function=prompt,
    hf_repo="openai/gsm8k",
    hf_subset="main",
    hf_avail_splits=["train", "test"],
    evaluation_splits=["test"],
    generation_size=rules.MAX_NEW_TOKENS,
    metrics=[
        metric("answer", _answer),
        metric("format", _format),
        metric("format_loose", _format_loose),
        metric("answer_number", _answer_number),
        metric("answer_and_format", _answer_and_format),
    ],
)

TASKS_TABLE = [TASK]
