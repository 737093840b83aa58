"""Arms against the baseline, and what is said of them."""

from collections.abc import Sequence

import numpy as np
import pytest

from slot_vllm.evaluation import statistics
from slot_vllm.evaluation.comparison import compare
from slot_vllm.evaluation.record import Comparison


def by_id(scores: Sequence[float]) -> dict[str, float]:
    return {str(i): float(score) for i, score in enumerate(scores)}


def one(arm: Sequence[float], baseline: Sequence[float]) -> Comparison:
    return compare({"slot": by_id(arm)}, by_id(baseline))["slot"]


def test_too_few_problems() -> None:
    found = one([1] * 3 + [0] * 27, [0, 0] + [1] * 2 + [0] * 26)
    assert found.difference == pytest.approx(1 / 30)
    assert found.difference_interval == statistics.tango(2, 1, 30)
    assert (found.p_value, found.p_value_holm) == (1, 1)
    assert found.method == "Tango's score interval; McNemar's exact test"
    assert found.words == (
        "no difference can be told from 30 problems (p = 1); "
        "about 710 would be needed for one as large as observed."
    )


def test_a_difference() -> None:
    found = one([1] * 10 + [0] * 20, [0] * 30)
    assert found.p_value == pytest.approx(2 * 0.5**10)
    assert found.words == "higher by 0.3333 (p = 0.002)."
    assert "lower by 0.3333" in one([0] * 30, [1] * 10 + [0] * 20).words


def test_no_difference_at_all() -> None:
    assert one([1, 0, 0], [1, 0, 0]).words.endswith("every problem scored the same.")
    assert one([1, 0, 0], [0, 1, 0]).words.endswith("what some problems gained others lost.")


def test_holms_correction() -> None:
    arms = {f"slot{wins}": by_id([1] * wins + [0] * (20 - wins)) for wins in (5, 7, 10)}
    found = compare(arms, by_id([0] * 20))
    p = [2 * 0.5**wins for wins in (5, 7, 10)]
    assert [c.p_value for c in found.values()] == pytest.approx(p)
    assert [c.p_value_holm for c in found.values()] == pytest.approx([p[0], 2 * p[1], 3 * p[2]])
    assert "(p = 0.062, corrected for 3 arms); about" in found["slot5"].words
    assert "higher by 0.3500 (p = 0.031, corrected for 3 arms)." in found["slot7"].words


def test_other_scores_than_right_or_wrong() -> None:
    shares = one([0.5, 0.75, 1, 0.25], [0.25, 0.5, 0.75, 0])
    assert shares.difference == pytest.approx(0.25)
    assert shares.p_value == pytest.approx(2 / 2**4)
    assert shares.method == "Student's t interval over problems; permutation test over problems"
    random = np.random.default_rng(0)
    others = one(random.normal(10, 1, 20).tolist(), random.normal(0, 1, 20).tolist())
    assert others.method.startswith("paired BCa bootstrap over problems; permutation test")
    assert "The interval is a bootstrap of only 20 problems and may be too short." in others.words
    assert one([7, 8], [5, 6]).difference_interval is None
    assert "There is no interval: all differences are alike." in one([7, 8], [5, 6]).words


def test_only_the_problems_that_both_answered_count() -> None:
    found = compare({"slot": {"b": 1.0, "a": 0.0}, "none": {}}, {"a": 1.0, "c": 1.0})
    assert list(found) == ["slot"]
    assert found["slot"].difference == -1
    assert compare({"slot": {"a": 1.0}}, {}) == {}
    # Whatever order they finished in, to the last digit.
    random = np.random.default_rng(0)
    arm, baseline = by_id(random.random(40).tolist()), by_id(random.random(40).tolist())
    turned = dict(reversed(arm.items()))
    assert compare({"slot": arm}, baseline) == compare({"slot": turned}, baseline)
