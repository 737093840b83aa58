"""Metrics that judge answers as the model wrote them, reasoning included."""

from collections.abc import Callable

import numpy as np
from lighteval.metrics.metrics_sample import AvgAtN
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc, SamplingMethod


def metric(name: str, judge: Callable[[str, Doc], float]) -> SampleLevelMetric:
    """The mean of ``judge(answer, problem)`` over a problem's answers, one unless the run asks for
    more, and over problems. lighteval's own metrics see answers without ``<think>...</think>``."""

    def judged(doc: Doc, response: ModelResponse) -> float:
        return float(judge(response.text[0], doc))

    return SampleLevelMetric(
        metric_name=name,
        sample_level_fn=AvgAtN(n=1, sample_scoring_function=judged),
        category=SamplingMethod.GENERATIVE,
        corpus_level_fn=np.mean,
        higher_is_better=True,
    )
