"""An arm against the baseline on the same problems, in numbers and in words."""

import math
from collections.abc import Mapping

import numpy as np
from statsmodels.stats.multitest import multipletests

from slot_vllm.evaluation import statistics
from slot_vllm.evaluation.record import Comparison
from slot_vllm.evaluation.statistics import ALPHA, Interval, Numbers

# By problem id.
ProblemScores = Mapping[str, float]

# Below this a bootstrap's intervals are noticeably too short.
_FEW_FOR_BOOTSTRAP = 50


def compare(arms: Mapping[str, ProblemScores], baseline: ProblemScores) -> dict[str, Comparison]:
    """Each arm against the baseline; arms that share no problem with it are left out."""
    pairs = {arm: paired(scores, baseline) for arm, scores in arms.items()}
    pairs = {arm: pair for arm, pair in pairs.items() if len(pair[0])}
    if not pairs:
        return {}
    p_values = [statistics.p_value(*pair) for pair in pairs.values()]
    corrected = multipletests(p_values, ALPHA, method="holm")[1]
    compared = {}
    for (arm, pair), p, holm in zip(pairs.items(), p_values, map(float, corrected), strict=True):
        interval = statistics.difference_interval(*pair)
        compared[arm] = Comparison(
            difference=float((pair[0] - pair[1]).mean()),
            difference_interval=interval,
            p_value=p,
            p_value_holm=holm,
            method=_method(*pair),
            words=_words(*pair, interval, holm, len(pairs)),
        )
    return compared


def paired(arm: ProblemScores, baseline: ProblemScores) -> tuple[Numbers, Numbers]:
    """The scores of both, on the problems that both have one for, in an order that is the same
    whatever order the problems finished in."""
    both = sorted(arm.keys() & baseline.keys())
    return np.array([arm[i] for i in both], float), np.array([baseline[i] for i in both], float)


def _method(arm: Numbers, baseline: Numbers) -> str:
    if statistics.right_or_wrong(arm, baseline):
        return "Tango's score interval; McNemar's exact test"
    if statistics.shares(arm, baseline):
        return "Student's t interval over problems; permutation test over problems"
    return "paired BCa bootstrap over problems; permutation test over problems"


def _words(arm: Numbers, baseline: Numbers, interval: Interval | None, p: float, arms: int) -> str:
    n, mean = len(arm), (arm - baseline).mean()
    problems = f"{n} problem{'s' if n > 1 else ''}"
    corrected = f"p = {p:.2g}" + (f", corrected for {arms} arms" if arms > 1 else "")
    if p <= ALPHA:
        said = f"{'higher' if mean > 0 else 'lower'} by {abs(mean):.4f} ({corrected})."
    else:
        said = f"no difference can be told from {problems} ({corrected}); "
        needed = statistics.problems_needed(arm, baseline, ALPHA / arms)
        if needed is not None:
            said += f"about {_rounded(needed)} would be needed for one as large as observed."
        elif (arm == baseline).all():
            said += "every problem scored the same."
        else:
            said += "what some problems gained others lost."
    if not statistics.shares(arm, baseline) and n < _FEW_FOR_BOOTSTRAP:
        said += f" The interval is a bootstrap of only {problems} and may be too short."
    if interval is None:
        said += " There is no interval: all differences are alike."
    return said


def _rounded(count: int) -> int:
    """Up, to two digits."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return math.ceil(count / unit) * unit
