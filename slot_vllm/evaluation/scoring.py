"""Scores by lighteval's own metrics, and of how answers end and read."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lighteval.logging.info_loggers import MetricsLogger
from lighteval.metrics import apply_metric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.utils.utils import remove_reasoning_tags

from slot_vllm.evaluation import requirements
from slot_vllm.evaluation.conduct import conduct
from slot_vllm.evaluation.config import RunFailed
from slot_vllm.evaluation.record import Sample
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.statistics import Interval, mean_interval
from slot_vllm.evaluation.tasks import EvaluationTask, fresh

# As in lighteval's pipeline.
REASONING_TAGS = [("<think>", "</think>")]
BOOTSTRAP_ITERATIONS = 1000

# One problem's scores, by metric. Most are numbers; some corpus metrics carry objects.
Scores = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A metric over a task's problems; ``stderr`` is None where lighteval computes none."""

    value: float | None
    stderr: float | None


def score(task: EvaluationTask, doc: Doc, response: ModelResponse) -> Scores:
    """One problem's scores, by the task's metrics. Raises RunFailed if they need a package that is
    not installed."""
    response.text_post_processed = [
        remove_reasoning_tags(text, REASONING_TAGS) for text in response.text
    ]
    try:
        return apply_metric([response], [fresh(doc)], list(task.task.metrics))[0]
    except ImportError as error:
        raise RunFailed(f"{task.name}: {requirements.missing(error)}") from error


def score_stored(task: EvaluationTask, doc: Doc, samples: Sequence[Sample]) -> Scores:
    """The same of stored answers to the problem, in the order in which they were drawn."""
    texts = [sample.completion for sample in samples]
    return score(task, doc, ModelResponse(input=samples[0].prompt or doc.query, text=texts))


def graded(samples: Sequence[Sample], scores: Scores) -> list[Sample]:
    """A problem's answers with its scores, the shares that are cut off and that loop among them."""
    numbers = {metric: number(value) for metric, value in scores.items()}
    main = next(iter(numbers.values()), None)
    every = {**numbers, **conduct(samples)}
    return [changed(sample, score=main, scores=every) for sample in samples]


def aggregate(task: EvaluationTask, scores: Sequence[Scores]) -> dict[str, Value]:
    """The task's metrics over all its problems, in the order of the task's definition."""
    logger = MetricsLogger()
    for of_problem in scores:
        logger.log(task.task.full_name, of_problem)
    logger.aggregate({task.task.full_name: task.task}, BOOTSTRAP_ITERATIONS)
    values = logger.metric_aggregated[task.task.full_name]
    return {
        name: Value(number(value), number(values.get(f"{name}_stderr")))
        for name, value in values.items()
        if not name.endswith("_stderr")
    }


def interval(scores: Sequence[float | None], value: float | None) -> Interval | None:
    """Of a metric's value, at 95 %, over its problems; None where it is not the mean of them."""
    known = [score for score in scores if score is not None]
    average = mean(known)
    if average is None or value is None or not math.isclose(average, value, abs_tol=1e-9):
        return None
    return mean_interval(np.array(known, float))


def number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return None


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
