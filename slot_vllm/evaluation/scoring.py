"""Scores by lighteval's own metrics, and of how answers end and read."""

import copy
import logging
import math
import numbers
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from lighteval.logging.info_loggers import MetricsLogger
from lighteval.metrics import apply_metric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.utils.utils import remove_reasoning_tags

from slot_vllm.evaluation import requirements
from slot_vllm.evaluation.conduct import conduct
from slot_vllm.evaluation.errors import ConfigError, one_line
from slot_vllm.evaluation.record import Metric, Sample
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.statistics import Interval, mean_interval
from slot_vllm.evaluation.tasks import EvaluationTask

logger = logging.getLogger(__name__)

# As in lighteval's pipeline.
REASONING_TAGS = [("<think>", "</think>")]
BOOTSTRAP_ITERATIONS = 1000

# One problem's scores, by metric. Most are numbers; some corpus metrics carry objects. Empty where
# it could not be scored.
Scores = dict[str, Any]
_Key = TypeVar("_Key")


def score(task: EvaluationTask, doc: Doc, response: ModelResponse, arm: str = "") -> Scores:
    """One problem's scores, by the task's metrics; none where a scorer fails, which is logged with
    the names of arm and problem."""
    response.text_post_processed = [
        remove_reasoning_tags(text, REASONING_TAGS) for text in response.text
    ]
    try:
        return _scores(doc, response, list(task.task.metrics))
    except Exception as error:  # whatever a scorer raises
        whose = f"the answer of {arm}" if arm else "its answer"
        reason = _reason(error)
        logger.warning("%s: %s cannot be scored: %s", _named(task, doc), whose, reason)
        return {}


def check(task: EvaluationTask) -> None:
    """Scores a made-up answer to every problem. Raises ConfigError for the first problem that no
    answer can be scored by, or whose scorer draws at random what its row does not say.

    Metrics that score in batches are left out: they ask another model, at a cost.
    """
    metrics = [metric for metric in task.task.metrics if not metric.batched_compute]
    for doc in task.docs:
        text = f"A made-up answer: {' '.join(doc.get_golds())}"
        response = ModelResponse(input="", text=[text] * doc.num_samples)
        state = random.getstate()
        try:
            _scores(doc, response, metrics)
            # Such as IFEval's, which are told by the row what to look for.
            reason = (
                "what the row does not say is drawn at random"
                if random.getstate() != state and doc.specific
                else ""
            )
        except Exception as error:  # whatever a scorer raises
            reason = _reason(error)
        finally:
            random.setstate(state)
        if reason:
            raise ConfigError(f"{_named(task, doc)}: no answer to it can be scored: {reason}")


def _scores(doc: Doc, response: ModelResponse, metrics: Sequence[Any]) -> Scores:
    # A copy: lighteval's metrics write what they extract into the document.
    return apply_metric([response], [copy.deepcopy(doc)], metrics)[0]


def _named(task: EvaluationTask, doc: Doc) -> str:
    own = task.own_ids.get(doc.id)
    return f"{task.name}, problem {doc.id}{f' (its own id: {own})' if own is not None else ''}"


def _reason(error: Exception) -> str:
    lacking = requirements.missing(error)
    return lacking or f"{type(error).__name__}: {one_line(error)}"


def score_stored(task: EvaluationTask, doc: Doc, samples: Sequence[Sample]) -> Scores:
    """The same of stored answers to the problem, in the order in which they were drawn."""
    texts = [sample.completion for sample in samples]
    response = ModelResponse(input=samples[0].prompt or doc.query, text=texts)
    return score(task, doc, response, samples[0].arm)


def graded(samples: Sequence[Sample], scores: Scores) -> list[Sample]:
    """A problem's answers with its scores, the shares that are cut off and that loop among them."""
    numbers = {metric: number(value) for metric, value in scores.items()}
    main = next(iter(numbers.values()), None)
    every = {**numbers, **conduct(samples)}
    return [changed(sample, score=main, scores=every) for sample in samples]


def aggregate(task: EvaluationTask, scores: Sequence[Scores]) -> dict[str, Metric]:
    """The task's metrics over the problems that could be scored, in the order of the task's
    definition."""
    scored = [of_problem for of_problem in scores if of_problem]
    lower = {}
    for metric in task.task.metrics:
        better = metric.higher_is_better
        for name in metric.get_corpus_aggregations():
            lower[name] = not (better.get(name, True) if isinstance(better, dict) else better)
    if not scored:
        return {name: Metric(value=None, lower_is_better=less) for name, less in lower.items()}
    metrics, task_name = MetricsLogger(), task.task.full_name
    for of_problem in scored:
        metrics.log(task_name, of_problem)
    metrics.aggregate({task_name: task.task}, BOOTSTRAP_ITERATIONS)
    values = {name: number(value) for name, value in metrics.metric_aggregated[task_name].items()}
    return {
        name: Metric(
            value=value,
            interval=interval([number(one.get(name)) for one in scored], value),
            stderr=values.get(f"{name}_stderr"),
            lower_is_better=lower.get(name, False),
        )
        for name, value in values.items()
        if not name.endswith("_stderr")
    }


def interval(scores: Sequence[float | None], value: float | None) -> Interval | None:
    """Of a metric's value, at 95 %, over its problems; None where it is not the mean of them."""
    known = averaged(dict(enumerate(scores)), value)
    return mean_interval(np.array([*known.values()], float)) if known else None


def averaged(scores: Mapping[_Key, float | None], value: float | None) -> dict[_Key, float]:
    """The scores that there are, if ``value`` is their mean; else none."""
    known = {key: score for key, score in scores.items() if score is not None}
    average = mean(list(known.values()))
    if average is None or value is None or not math.isclose(average, value, abs_tol=1e-9):
        return {}
    return known


def number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return None


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def unscored(count: int, of: int) -> str:
    """In words, how many answers could not be scored."""
    return (
        f"the answers to {count} of {of} problems (of all arms together) could not be scored and "
        "are in no mean; which ones is said above"
    )
