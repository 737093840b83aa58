"""The published rules on constructed answers."""

import pytest

from slot_vllm.evaluation.benchmarks.gsm8k_rules import is_correct, is_format_correct


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
    assert is_correct(completion, gold) == correct


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
    assert is_format_correct(completion) == correct
