"""Which texts go round in circles."""

import pytest

from slot_vllm.evaluation.conduct import conduct, loops
from tests.evaluation.stored_runs import answer


@pytest.mark.parametrize(
    ("words", "distinct", "looping"),
    [
        (60, 1, False),
        (61, 1, True),
        (61, 15, True),
        (61, 16, False),
        (64, 16, False),
        (0, 0, False),
    ],
)
def test_over_60_words_of_which_fewer_than_a_quarter_are_distinct(
    words: int, distinct: int, looping: bool
) -> None:
    text = " ".join(str(i % distinct) for i in range(words))
    assert loops(text) == looping


def test_white_space_separates_words() -> None:
    assert loops("to be or not\nto be\t" * 20)
    assert not loops("tobeornottobe" * 100)


def test_the_shares_of_a_problems_answers() -> None:
    circles = "again and " * 40
    drawn = [
        answer("slot", 0, 1.0, completion=circles, finish_reason="length"),
        answer("slot", 0, 1.0, completion=circles, finish_reason="stop"),
        answer("slot", 0, 1.0, completion="5", finish_reason="stop"),
        answer("slot", 0, 1.0, completion="6", finish_reason="stop"),
    ]
    assert conduct(drawn) == {"truncated": 0.25, "loops": 0.5}
