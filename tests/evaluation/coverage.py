"""How often the evaluation's 95 % intervals cover what they should: a simulation.

``python -m tests.evaluation.coverage > logs/reference/coverage.md`` writes the whole table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.special import betaln
from scipy.stats import binom

from slot_vllm.evaluation.pass_at_k import pass_at_k
from slot_vllm.evaluation.statistics import (
    Interval,
    difference_interval,
    mean_interval,
)

PROBLEMS = (30, 198, 300, 500)
ACCURACIES = (0.07, 0.5, 0.95)
COMMON, RARE = 0.10, 0.03
SEED = 0

HEADER = f"""# How often the 95 % intervals cover

Made by `python -m tests.evaluation.coverage > logs/reference/coverage.md` (seed {SEED}), which
draws problems and counts how often the intervals of `slot_vllm/evaluation/statistics.py` cover the
true value. Wanted: 92 to 98 %.
"""


@dataclass(frozen=True)
class Cell:
    """Shares of draws, in percent, in which the interval of each quantity covered it."""

    setting: tuple[float, ...]
    covered: dict[str, float]


def discordance(accuracy: float) -> tuple[float, float]:
    """How often only the arm and only the baseline is right, as far as the accuracy allows."""
    return (COMMON, RARE) if accuracy < 1 - COMMON else (RARE, COMMON)


def right_or_wrong(draws: int) -> Iterator[Cell]:
    """One answer per problem: the accuracy, its difference, and why there is no bootstrap."""
    random = np.random.default_rng(SEED)
    for n, accuracy in product(PROBLEMS, ACCURACIES):
        better, worse = discordance(accuracy)
        both, neither = accuracy - worse, max(1 - accuracy - better, 0)
        drawn = random.multinomial(n, [better, worse, both, neither], draws)
        differing, right = drawn[:, :2], drawn[:, 1:3].sum(1, keepdims=True)
        covered = {
            "accuracy": _of_counts(right, accuracy, partial(_accuracy, n)),
            "difference": _of_counts(differing, better - worse, partial(_difference, n)),
            "accuracy by percentile bootstrap": _of_counts(
                right, accuracy, partial(_percentile, n)
            ),
        }
        yield Cell((n, accuracy), covered)


def rarely_different(draws: int) -> Iterator[Cell]:
    """One answer per problem, and few problems on which the sides differ."""
    random = np.random.default_rng(SEED)
    for n, (better, worse) in product(PROBLEMS, ((0.05, 0.05), (0.02, 0.01), (0.03, 0.0))):
        drawn = random.multinomial(n, [better, worse, 1 - better - worse], draws)
        covered = _of_counts(drawn[:, :2], better - worse, partial(_difference, n))
        yield Cell((n, better, worse), {"difference": covered})


def several_answers(draws: int) -> Iterator[Cell]:
    """Several answers per problem. Problems' rates of right answers follow a beta distribution of
    the accuracy's mean and the given concentration (small: a problem is solved always or never);
    an arm turns answers from wrong to right and back at rates that give the discordance."""
    random = np.random.default_rng(SEED)
    cells = product((4, 16), (0.3, 1.0, 4.0), PROBLEMS, ACCURACIES)
    for answers, concentration, n, accuracy in cells:
        better, worse = discordance(accuracy)
        a, b = accuracy * concentration, (1 - accuracy) * concentration
        rates = random.beta(a, b, (draws, n))
        moved = rates * (1 - worse / accuracy) + (1 - rates) * better / (1 - accuracy)
        right = random.binomial(answers, rates)
        baseline, arm = right / answers, random.binomial(answers, moved) / answers
        half = answers // 2
        passed = pass_at_k(answers, right.ravel().tolist(), half).reshape(draws, n)
        truth = 1 - np.exp(betaln(a, b + half) - betaln(a, b))
        covered = {
            "avg@k": _share(accuracy, map(mean_interval, baseline)),
            "difference": _share(better - worse, map(difference_interval, arm, baseline)),
            "pass@k/2": _share(truth, map(mean_interval, passed)),
        }
        yield Cell((answers, concentration, n, accuracy), covered)


def other_scores(draws: int) -> Iterator[Cell]:
    """Scores of any size: normal ones, and exponential ones, which are skewed."""
    random = np.random.default_rng(SEED)
    for n in (10, 30, 50, 198):
        normal, skewed = random.normal(3, 1, (draws, n)), random.exponential(3, (draws, n))
        covered = {
            "mean, normal": _share(3, map(mean_interval, normal)),
            "mean, exponential": _share(3, map(mean_interval, skewed)),
        }
        yield Cell((n,), covered)


def _of_counts(
    counts: npt.NDArray[np.int64], truth: float, interval: Callable[..., Interval | None]
) -> float:
    """As _share, with equal draws looked at once."""
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    inside = [_covers(interval(*kind), truth) for kind in kinds.tolist()]
    return 100 * float(np.average(inside, weights=times))


def _share(truth: float, intervals: Iterator[Interval | None]) -> float:
    return 100 * float(np.mean([_covers(interval, truth) for interval in intervals]))


def _covers(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]


def _accuracy(n: int, right: int) -> Interval | None:
    return mean_interval(np.repeat([1.0, 0.0], [right, n - right]))


def _percentile(n: int, right: int) -> Interval:
    low, high = binom.ppf([0.025, 0.975], n, right / n) / n
    return float(low), float(high)


def _difference(n: int, better: int, worse: int) -> Interval | None:
    counts = [better, worse, n - better - worse]
    return difference_interval(np.repeat([1.0, 0, 0], counts), np.repeat([0.0, 1, 0], counts))


def _table(title: str, names: str, cells: Iterator[Cell]) -> Iterator[str]:
    rows = list(cells)
    quantities = list(rows[0].covered)
    yield f"\n## {title}\n\n| {names} | {' | '.join(quantities)} |"
    yield f"|{' --- |' * (len(rows[0].setting) + len(quantities))}"
    for row in rows:
        values = [*(f"{s:g}" for s in row.setting), *(f"{v:.1f}" for v in row.covered.values())]
        yield f"| {' | '.join(values)} |"
    yield ""
    for name in quantities:
        of_all = [row.covered[name] for row in rows]
        yield f"- {name}: {min(of_all):.1f} to {max(of_all):.1f} %"


def report() -> Iterator[str]:
    """The lines of the table."""
    yield HEADER.rstrip()
    title = "One answer per problem, 20,000 draws"
    yield from _table(title, "problems | true accuracy", right_or_wrong(20_000))
    title = "The same where the sides rarely differ: not too short, with few problems long"
    yield from _table(title, "problems | only arm | only baseline", rarely_different(20_000))
    title = "Several answers per problem, 4,000 draws"
    names = "answers | concentration | problems | true accuracy"
    yield from _table(title, names, several_answers(4_000))
    title = "Scores of any size, BCa bootstrap, 1,000 draws"
    yield from _table(title, "problems", other_scores(1_000))


if __name__ == "__main__":
    for line in report():
        print(line)
