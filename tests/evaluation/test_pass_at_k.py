"""pass@k against lighteval's formula and against all ways to choose k answers."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lighteval.metrics.metrics_sample import PassAtK

from slot_vllm.evaluation.pass_at_k import by_k, pass_at_k


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(0, n)] * 2)))
def test_the_share_of_choices_that_hold_a_right_answer(drawn: tuple[int, int, int]) -> None:
    answers, right, k = drawn
    if k:
        choices = list(combinations([True] * right + [False] * (answers - right), k))
        expected = sum(any(choice) for choice in choices) / len(choices)
        assert pass_at_k(answers, [right], k)[0] == pytest.approx(expected)
        theirs = PassAtK(k=k, n=answers, sample_scoring_function=lambda doc, response: 0.0)
        scores = [1] * right + [0] * (answers - right)
        assert theirs.pass_at_k(scores) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["avg@n:n=6", "pass@k:k=1&n=6", "gpqa_pass@k:k=1&n=6"])
def test_every_k_from_the_shares_of_right_answers(metric: str) -> None:
    estimates = by_k(metric, [0.0, 2 / 6, 1.0])
    assert list(estimates) == [1, 2, 4, 6]
    assert estimates[1] == pytest.approx([0, 2 / 6, 1])
    assert estimates[2] == pytest.approx([0, 1 - (4 * 3) / (6 * 5), 1])
    assert estimates[6] == pytest.approx([0, 1, 1])


@pytest.mark.parametrize(
    ("metric", "share"),
    [("avg@n:n=1", 1.0), ("pass@k:k=2&n=6", 0.5), ("extractive_match", 1.0), ("avg@n:n=6", 0.4)],
)
def test_other_metrics_have_no_pass_at_k(metric: str, share: float) -> None:
    assert by_k(metric, [share]) == {}
