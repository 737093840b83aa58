"""pass@k for every k, from the shares of right answers that lighteval's metrics report."""

import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom

from slot_vllm.evaluation.statistics import Numbers

# Both are the share of right answers among the n that were drawn for a problem.
_SHARE_OF_RIGHT = re.compile(r"(?:\w+_)?avg@n:n=(\d+)|(?:\w+_)?pass@k:k=1&n=(\d+)")


def by_k(metric: str, shares: Sequence[float]) -> dict[int, Numbers]:
    """pass@k per problem, for the powers of two up to the number of answers and for that number.

    shares: the metric's score of each problem. Nothing if the metric is no share of right answers
    among several, or if answers are not just right or wrong.
    """
    found = _SHARE_OF_RIGHT.fullmatch(metric)
    answers = int(found[1] or found[2]) if found else 1
    counts = np.asarray(shares, float) * answers
    right = counts.round().astype(int)
    if answers < 2 or not np.allclose(counts, right, rtol=0, atol=1e-6):
        return {}
    ks = sorted({*(2**i for i in range(answers.bit_length())), answers})
    return {k: pass_at_k(answers, right.tolist(), k) for k in ks}


def pass_at_k(answers: int, right: Sequence[int], k: int) -> Numbers:
    """Per problem, the unbiased estimate of the probability that one of k answers is right.

    answers: drawn per problem, at least k; right: of them, per problem. Chen et al. 2021
    (arXiv 2107.03374): the probability that k of the drawn answers, drawn again without
    replacement, hold a right one.
    """
    return np.asarray(hypergeom.sf(0, answers, right, k), float)
