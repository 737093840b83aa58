"""The quickstart's prompts: each asks for what lighteval's checker of IFEval looks at."""

import json
from typing import Any

import nltk
import pytest

from slot_vllm.evaluation import config as configuration
from tests.conftest import ROOT

PROMPTS = ROOT / "configs" / "data" / "instructions.jsonl"
# Of each kind, answers to its first prompt: a right one and a wrong one.
ANSWERS = {
    "keyword": (
        "She opened her umbrella. The street was quiet.",
        "Rain fell on the roofs. The street was quiet.",
    ),
    "few_words": (
        "The capital of Portugal is Lisbon.",
        "The capital of Portugal is Lisbon, which lies at the mouth of the Tagus in the west.",
    ),
    "many_words": (
        "I like autumn most because the air is clear, the light is low and golden, the woods "
        "smell of mushrooms, and I can read all evening without feeling guilty.",
        "I like autumn most.",
    ),
    "postscript": (
        "We miss you here. Write soon!\n\nP.S. The cat is well.",
        "We miss you here. Write soon!",
    ),
    "placeholders": (
        "Dear [name], thank you for [gift]!",
        "Dear [name], thank you for the gift!",
    ),
    "forbidden_word": (
        "The sun is a star. It gives us light.",
        "The sun is a hot star. It gives us light.",
    ),
    "no_comma": (
        "The moon is a rock that circles the earth.",
        "The moon is a rock, and it circles the earth.",
    ),
    "highlight": (
        "Plants turn *light* into sugar. They need water for it.",
        "Plants turn light into sugar. They need water for it.",
    ),
    "title": ("<<Night>>\nThe stars are out.\nThe town is still.", "Night\nThe stars are out."),
    "json": ('{"name": "Italy", "capital": "Rome"}', "The capital of Italy is Rome."),
    "bullets": ("* bread\n* cheese\n* a blanket", "* bread\n* cheese"),
    "ending": (
        "The sea is wide. And the waves go on.",
        "The sea is wide. And the waves go on. Always.",
    ),
    "repeated_word": (
        "The river is slow. A river needs time, and this river has it.",
        "The river is slow. It has time.",
    ),
    "choice": ("My answer is yes.", "Yes, it is."),
    "quotation": ('"Two wheels are enough."', "Two wheels are enough."),
}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def ifeval() -> Any:
    """lighteval's task, which would download NLTK's data on import; no kind here needs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *_, **__: False)
        from lighteval.tasks.tasks.ifeval import main

        yield main


def strict(ifeval: Any, row: dict[str, Any], answer: str) -> bool:
    from lighteval.models.model_output import ModelResponse

    doc = ifeval.ifeval_prompt(row, "ifeval")
    scores = ifeval.IFEvalMetrics().compute(doc, ModelResponse(text=[answer]))
    return bool(scores["prompt_level_strict_acc"])


def test_kinds_from_easy_to_hard() -> None:
    found = rows()
    assert len(found) == 150
    assert [row["key"] for row in found] == list(range(1, 151))
    assert len({row["prompt"] for row in found}) == 150
    assert [row["format"] for row in found] == [kind for kind in ANSWERS for _ in range(10)]
    levels = ["easy"] * 50 + ["medium"] * 50 + ["hard"] * 50
    assert [row["level"] for row in found] == levels


def test_the_checkers_know_every_instruction(ifeval: Any) -> None:
    for row in rows():
        [instruction], [arguments] = row["instruction_id_list"], row["kwargs"]
        checker = ifeval.instructions_registry.INSTRUCTION_DICT[instruction](instruction)
        checker.build_description(**arguments)
        built = checker.get_instruction_args() or {}
        # None of them was drawn at random, as checkers do for what they are not told.
        expected = {k: sorted(v) if isinstance(v, list) else v for k, v in arguments.items()}
        assert {key: built[key] for key in arguments} == expected
        assert {key for key, value in built.items() if value} == set(arguments), row["key"]
        # langdetect draws at random, and NLTK's sentences need a download.
        assert not instruction.startswith(("language", "change_case"))
        assert instruction not in (
            "length_constraints:number_sentences",
            "change_case:capital_word_frequency",
        )


def test_a_prompt_says_what_is_checked() -> None:
    for row in rows():
        for value in row["kwargs"][0].values():
            for said in value if isinstance(value, list) else [value]:
                if isinstance(said, str) and said not in ("less than", "at least"):
                    assert said in row["prompt"], row["key"]


@pytest.mark.parametrize("kind", ANSWERS)
def test_right_and_wrong_answers(ifeval: Any, kind: str) -> None:
    first = next(row for row in rows() if row["format"] == kind)
    right, wrong = ANSWERS[kind]
    assert strict(ifeval, first, right)
    assert not strict(ifeval, first, wrong)


def test_none_of_them_is_one_of_ifevals(benchmarks: Any) -> None:
    theirs = (benchmarks / "ifeval.jsonl").read_text(encoding="utf-8").splitlines()
    assert not {row["prompt"] for row in rows()} & {json.loads(line)["prompt"] for line in theirs}


def test_the_quickstart_asks_them() -> None:
    run = configuration.load(ROOT / "configs" / "quickstart.yaml")
    assert run.model == "get:smollm2-135m"
    assert [task.data for task in run.tasks] == ["configs/data/instructions.jsonl"]
    assert [arm.name for arm in run.all_arms] == ["baseline", "paper", "steps1"]
    assert run.generation.max_new_tokens == 64
