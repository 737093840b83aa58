"""Intervals and tests over a task's problems.

A task's problems are the units that are drawn; scores are one number per problem, ``[n]``, whatever
number of answers they were made of, so answers to one problem never count as independent. Intervals
are at 95 %; ``logs/reference/coverage.md`` shows how often they cover. Scores are of one of three
kinds, and every method below is chosen by the kind:

- right or wrong: all are 0 or 1;
- shares: all are in [0, 1], as avg@k and pass@k are;
- any other numbers.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import bootstrap, norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import normal_sample_size_one_tail
from statsmodels.stats.proportion import (
    proportion_confint,
    samplesize_proportions_2indep_onetail,
)
from statsmodels.stats.weightstats import DescrStatsW

Numbers = npt.NDArray[np.float64]
Interval = tuple[float, float]

ALPHA = 0.05
POWER = 0.8

# Few problems may by chance all score alike, and their variance is then taken for nothing. So
# shares are joined by a small part of a problem at each end of what is possible. The sizes are the
# smallest that made the intervals cover (logs/reference/coverage.md).
_EXTREME_SHARE = 0.15
_EXTREME_DIFFERENCE = 0.05

_RESAMPLES = 9999
_BATCH = 500


def right_or_wrong(*scores: Numbers) -> bool:
    return all(bool(np.isin(values, (0, 1)).all()) for values in scores)


def shares(*scores: Numbers) -> bool:
    return all(bool(((values >= 0) & (values <= 1)).all()) for values in scores)


def mean_interval(scores: Numbers) -> Interval | None:
    """The interval of the mean of ``[n]`` scores.

    Right or wrong: Wilson's. Shares: Wilson's with the number of problems divided by the design
    effect, that is with the n at which a proportion would vary as the mean of the shares does
    (Franco, Little, Louis, Slud 2019). Others: the BCa bootstrap; None where they are all alike,
    because nothing is then known of how they vary.
    """
    if not shares(scores):
        return _bootstrap(scores)
    n = float(len(scores))
    if not right_or_wrong(scores):
        joined = _joined(scores, (0, 1), _EXTREME_SHARE)
        n *= joined.mean * (1 - joined.mean) / joined.var
    low, high = proportion_confint(scores.mean() * n, n, ALPHA, method="wilson")
    return float(low), float(high)


def difference_interval(arm: Numbers, baseline: Numbers) -> Interval | None:
    """The interval of the mean of ``arm - baseline``, ``[n]`` scores of the same problems.

    Right or wrong: Tango's score interval. Shares: Student's t. Others: the BCa bootstrap over
    problems; None where all differences are alike.
    """
    differences = arm - baseline
    if right_or_wrong(arm, baseline):
        return tango(*_discordant(differences), len(arm))
    if not shares(arm, baseline):
        return _bootstrap(differences)
    joined = _joined(differences, (-1, 1), _EXTREME_DIFFERENCE)
    low, high = joined.tconfint_mean(ALPHA)
    return max(float(low), -1.0), min(float(high), 1.0)


def tango(better: int, worse: int, n: int) -> Interval:
    """The score interval of a difference of paired proportions, ``(better - worse) / n``.

    better, worse: of n problems, those that only one side solves. Tango, Statistics in Medicine 17
    (1998) 891-908, equations 16 and 17: all differences that the score test does not reject.
    """
    observed = (better - worse) / n
    critical = float(norm.isf(ALPHA / 2))

    def statistic(difference: float) -> float:
        linear = -better - worse + (2 * n - better + worse) * difference
        constant = -worse * difference * (1 - difference)
        # Not below zero but by rounding.
        likeliest = (math.sqrt(max(linear**2 - 8 * n * constant, 0)) - linear) / (4 * n)
        variance = n * (2 * likeliest + difference * (1 - difference))
        return (better - worse - n * difference) / math.sqrt(variance)

    low, high, margin = -1.0, 1.0, 1e-9
    if observed > -1:
        low = brentq(lambda d: statistic(d) - critical, margin - 1, observed - margin)
    if observed < 1:
        high = brentq(lambda d: statistic(d) + critical, observed + margin, 1 - margin)
    return low, high


def p_value(arm: Numbers, baseline: Numbers) -> float:
    """Two-sided, of no difference between ``[n]`` scores of the same problems.

    Right or wrong: McNemar's exact test. Others: a permutation test of the mean difference, which
    swaps the sides of each problem; exact up to 13 problems, else by 9999 random swaps.
    """
    differences = arm - baseline
    if right_or_wrong(arm, baseline):
        better, worse = _discordant(differences)
        return float(mcnemar([[0, better], [worse, 0]], exact=True).pvalue)
    if len(differences) < 2:
        return 1.0
    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def problems_needed(arm: Numbers, baseline: Numbers, alpha: float = ALPHA) -> int | None:
    """How many problems would show the observed difference in 80 % of all draws.

    For a two-sided test at alpha, from the differences' variance under no difference and under the
    observed one; for right or wrong that is the size for McNemar's test of Miettinen, Biometrics 24
    (1968) 339-352, from the observed discordance. At least what lets an exact test reject at all.
    None where no difference was observed.
    """
    differences = arm - baseline
    mean, square = differences.mean(), (differences**2).mean()
    if math.isclose(mean, 0, abs_tol=1e-12):
        return None
    spread = math.sqrt(max(square - mean**2, 0))
    needed = normal_sample_size_one_tail(mean, POWER, alpha / 2, math.sqrt(square), spread)
    # n problems that all differ the same way have p = 2 / 2 ** n.
    one_sided = math.ceil(math.log2(2 / alpha)) / np.count_nonzero(differences) * len(differences)
    return math.ceil(max(float(needed), one_sided))


def problems_needed_unpaired(one: float, other: float) -> int | None:
    """How many problems on each side would show two shares of right answers to differ, in 80 % of
    all draws, where nothing is known of which problems both solve.

    Of the two-sided z test of independent proportions at 5 %, its variance pooled under no
    difference and not under the given one (Fleiss, Statistical Methods for Rates and Proportions,
    chapter 4); computed by statsmodels. Sides that answer the same problems need fewer, if
    anything. None where the shares are equal.
    """
    if math.isclose(one, other, abs_tol=1e-12):
        return None
    needed = samplesize_proportions_2indep_onetail(one - other, other, POWER, alpha=ALPHA)
    return math.ceil(needed)


def _joined(values: Numbers, ends: tuple[int, int], weight: float) -> DescrStatsW:
    weights = np.append(np.ones(len(values)), [weight, weight])
    return DescrStatsW(np.append(values, ends), weights)


def _discordant(differences: Numbers) -> tuple[int, int]:
    return int((differences > 0).sum()), int((differences < 0).sum())


def _bootstrap(values: Numbers) -> Interval | None:
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - ALPHA,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
