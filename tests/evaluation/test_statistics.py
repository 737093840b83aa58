"""Intervals and tests against scipy, statsmodels and first principles; coverage by simulation."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar

from slot_vllm.evaluation.statistics import (
    ALPHA,
    Numbers,
    difference_interval,
    mean_interval,
    p_value,
    problems_needed,
    tango,
)
from tests.evaluation import coverage
from tests.evaluation.coverage import Cell

LOWEST, HIGHEST = 92, 98

counts = st.integers(0, 40)
shares = st.lists(st.integers(0, 16), min_size=2, max_size=60).map(lambda c: np.array(c) / 16)
pairs = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=2, max_size=60).map(
    lambda c: np.array(c).T / 16
)


def pair(better: int, worse: int, both: int = 0, neither: int = 0) -> tuple[Numbers, Numbers]:
    """Right or wrong, on problems that only the arm, only the baseline, both or none solves."""
    drawn = [better, worse, both, neither]
    return np.repeat([1.0, 0, 1, 0], drawn), np.repeat([0.0, 1, 1, 0], drawn)


@given(counts, counts)
def test_an_accuracy_has_wilsons_interval(right: int, wrong: int) -> None:
    if right + wrong:
        found = mean_interval(np.repeat([1.0, 0.0], [right, wrong]))
        expected = stats.binomtest(right, right + wrong).proportion_ci(0.95, "wilson")
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def score(better: int, worse: int, n: int, difference: float) -> float:
    """Tango's statistic, with the likeliest discordance under the difference by search."""
    lowest = max(0.0, -difference) + 1e-12

    def unlikely(rare: float) -> float:
        common = rare + difference
        rest = 1 - rare - common
        terms = [(better, common), (worse, rare), (n - better - worse, rest)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in terms if count)

    bounds = (lowest, (1 - difference) / 2)
    rare = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * rare + difference - difference**2) / n
    return ((better - worse) / n - difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(12, 2, 50), (1, 0, 30), (10, 3, 100), (40, 20, 160), (5, 0, 5)]
)
def test_tangos_interval_ends_where_the_score_test_rejects(better: int, worse: int, n: int) -> None:
    low, high = tango(better, worse, n)
    critical = stats.norm.ppf(1 - ALPHA / 2)
    assert score(better, worse, n, low) == pytest.approx(critical, abs=2e-3)
    if better < n:
        assert score(better, worse, n, high) == pytest.approx(-critical, abs=2e-3)
    else:
        assert high == 1


@given(counts, counts, counts)
def test_tangos_interval_leaves_out_zero_where_mcnemars_score_test_rejects(
    better: int, worse: int, same: int
) -> None:
    if better + worse:
        low, high = tango(better, worse, better + worse + same)
        table = [[same, better], [worse, 0]]
        rejected = mcnemar(table, exact=False, correction=False).pvalue < ALPHA
        assert (low > 0 or high < 0) == rejected
        assert -1 <= low <= (better - worse) / (better + worse + same) <= high <= 1


@pytest.mark.parametrize("n", range(1, 200))
def test_every_problem_changed_for_the_worse(n: int) -> None:
    # At the end of the search the score test's square root is of zero, or of less by rounding.
    low, high = tango(0, n, n)
    assert low == -1 < high < 1
    assert tango(n, 0, n) == pytest.approx((-high, 1))


def test_nothing_differed() -> None:
    # By symmetry the ends are z^2 / (n + z^2).
    z = stats.norm.ppf(1 - ALPHA / 2)
    expected = z**2 / (30 + z**2)
    assert tango(0, 0, 30) == pytest.approx((-expected, expected), abs=1e-6)


@given(counts, counts, counts, counts)
def test_mcnemars_exact_test(better: int, worse: int, both: int, neither: int) -> None:
    if better + worse:
        expected = stats.binomtest(better, better + worse).pvalue
        assert p_value(*pair(better, worse, both, neither)) == pytest.approx(expected)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3))
def test_the_permutation_test_of_equal_steps_is_mcnemars(
    better: int, worse: int, same: int
) -> None:
    if better + worse + same > 1:
        arm, baseline = pair(better, worse, same)
        assert p_value(arm / 2, baseline / 2) == pytest.approx(p_value(arm, baseline))


def test_the_permutation_test_of_many_problems_is_near_the_t_test() -> None:
    random = np.random.default_rng(0)
    baseline = random.normal(0, 1, 200)
    arm = baseline + random.normal(0.15, 1, 200)
    expected = stats.ttest_rel(arm, baseline).pvalue
    assert p_value(arm, baseline) == pytest.approx(expected, abs=0.01)


@given(shares)
def test_the_interval_of_shares(scores: Numbers) -> None:
    interval, mirrored = mean_interval(scores), mean_interval(1 - scores)
    assert interval is not None and mirrored is not None
    assert -1e-12 <= interval[0] <= scores.mean() + 1e-12
    assert scores.mean() - 1e-12 <= interval[1] <= 1 + 1e-12
    assert mirrored == pytest.approx((1 - interval[1], 1 - interval[0]))


@given(pairs)
def test_the_interval_of_a_difference_of_shares(scores: Numbers) -> None:
    arm, baseline = scores
    interval, mirrored = difference_interval(arm, baseline), difference_interval(baseline, arm)
    assert interval is not None and mirrored is not None
    assert -1 <= interval[0] < interval[1] <= 1
    assert mirrored == pytest.approx((-interval[1], -interval[0]), abs=1e-9)


def test_intervals_of_many_shares_and_other_scores_are_near_students() -> None:
    random = np.random.default_rng(0)
    for scores in (random.beta(2, 2, 1000), random.normal(5, 2, 1000)):
        expected = stats.ttest_1samp(scores, 0).confidence_interval()
        width = expected.high - expected.low
        other = random.permutation(scores)
        between = stats.ttest_rel(scores, other).confidence_interval()
        assert mean_interval(scores) == pytest.approx(expected, abs=0.05 * width)
        assert difference_interval(scores, other) == pytest.approx(between, abs=0.05 * width)


def test_few_or_equal_scores() -> None:
    one, half = np.array([1.0]), np.array([0.5])
    assert mean_interval(one) == pytest.approx((0.2065, 1), abs=1e-3)
    assert difference_interval(one, half) == (-1, 1)
    assert p_value(one, half) == 1
    alike = np.array([7.0, 7.0])
    assert mean_interval(alike) is None
    assert difference_interval(alike, alike - 1) is None


def test_the_problems_needed_give_the_power() -> None:
    needed = problems_needed(*pair(10, 3, 50, 37))
    assert needed is not None and 150 < needed < 300
    random = np.random.default_rng(0)
    drawn = random.multinomial(needed, [0.10, 0.03, 0.87], 2000)
    rejected = np.mean([p_value(*pair(b, w)) < ALPHA for b, w, _same in drawn])
    # The exact test is a little weaker than the score test that the size is for.
    assert 0.74 < rejected < 0.82


@given(counts, counts, counts, st.integers(1, 4))
def test_more_problems_are_needed_where_these_do_not_tell(
    better: int, worse: int, same: int, arms: int
) -> None:
    scores = pair(better, worse, same)
    if better == worse:
        assert not better + worse + same or problems_needed(*scores) is None
    elif p_value(*scores) > ALPHA / arms:
        needed = problems_needed(*scores, ALPHA / arms)
        assert needed is not None and needed > better + worse + same


def check(cells: Iterator[Cell], names: set[str]) -> None:
    for cell in cells:
        for name in names:
            assert LOWEST <= cell.covered[name] <= HIGHEST, (cell.setting, name, cell.covered[name])


def test_intervals_of_one_answer_cover() -> None:
    check(coverage.right_or_wrong(20_000), {"accuracy", "difference"})
    for cell in coverage.rarely_different(5_000):
        assert cell.covered["difference"] >= LOWEST


@pytest.mark.full
def test_intervals_of_several_answers_cover() -> None:
    cells = list(coverage.several_answers(4_000))
    check(iter(cells), {"avg@k", "difference"})
    # pass@k comes nearer to 1 than any of the accuracies; there its intervals are less exact.
    assert all(91 <= cell.covered["pass@k/2"] <= 99 for cell in cells)
