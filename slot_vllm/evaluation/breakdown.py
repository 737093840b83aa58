"""Results by group of problems: by level, subject, answer format."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from slot_vllm.evaluation import statistics
from slot_vllm.evaluation.comparison import ProblemScores, paired
from slot_vllm.evaluation.record import Breakdown, Group
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.scoring import mean


def of_answers(scored: Sequence[tuple[str, float | None]]) -> Breakdown:
    """The mean score and the number of answers per group, from pairs of group and score."""
    groups: dict[str, list[float | None]] = defaultdict(list)
    for group, value in scored:
        groups[group].append(value)
    return {
        group: Group(value=mean(values), samples=len(values))
        for group, values in sorted(groups.items())
    }


def of_problems(
    groups: Mapping[str, str], scores: ProblemScores, baseline: ProblemScores | None = None
) -> Breakdown:
    """Mean score, its interval and the number of problems per group, in the order of the problems.

    groups, scores: by problem id. With a baseline also the difference to it, over the problems that
    both have a score for.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for problem, group in groups.items():
        if problem in scores:
            members[group].append(problem)
    return {group: _figures(ids, scores, baseline) for group, ids in members.items()}


def _figures(ids: Sequence[str], scores: ProblemScores, baseline: ProblemScores | None) -> Group:
    values = np.array([scores[i] for i in ids], float)
    group = Group(
        value=float(values.mean()), samples=len(ids), interval=statistics.mean_interval(values)
    )
    arm, own = paired({i: scores[i] for i in ids}, baseline or {})
    if not len(arm):
        return group
    return changed(
        group,
        difference=float((arm - own).mean()),
        difference_interval=statistics.difference_interval(arm, own),
    )
