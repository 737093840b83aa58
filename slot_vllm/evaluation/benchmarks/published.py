"""``published:aime24``, ``published:math_500`` and ``published:gpqa:diamond``: the prompts and the
scorer of lighteval 0.8.1, which the published logs come from. ``published:aime25`` is the same for
AIME 2025, which nothing is published of."""

import copy
from dataclasses import replace
from typing import Any

from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.metrics import Metrics
from lighteval.metrics.utils.extractive_match_utils import LatexExtractionConfig
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc
from lighteval.tasks.tasks import aime, gpqa, math_500

from slot_vllm.evaluation.benchmarks.extractive_match import match
from slot_vllm.evaluation.benchmarks.raw_text import metric

GENERATION_SIZE = 32768


def _metric(settings: MultilingualExtractiveMatchMetric) -> SampleLevelMetric:
    return metric("extractive_match", lambda text, doc: match(settings, text, doc))


def _latex_gold() -> MultilingualExtractiveMatchMetric:
    """Which lighteval has no more: as where the gold is a number, but it is LaTeX."""
    settings = copy.copy(Metrics.expr_gold_metric.value.sample_level_fn)
    settings.gold_extraction_target = (LatexExtractionConfig(),)
    return settings


def _math_query(problem: str) -> str:
    return aime.MATH_PROMPT_TEMPLATE.strip().format(prompt=problem)


def aime_prompt(line: dict[str, Any], task_name: str = "") -> Doc:
    return replace(aime.aime_prompt(line, task_name), query=_math_query(line["problem"]))


def math_500_prompt(line: dict[str, Any], task_name: str = "") -> Doc:
    """It asks as AIME's does; the gold answer is what is boxed in the solution."""
    return Doc(
        task_name=task_name,
        query=_math_query(line["problem"]),
        choices=[line["solution"]],
        gold_index=0,
    )


def gpqa_prompt(line: dict[str, Any], task_name: str = "") -> Doc:
    """It draws the right choice's place from the global ``random``, once per question."""
    # All of the query is the instruction: as one, lighteval would put a blank line behind it.
    return replace(gpqa.gpqa_prompt(line, task_name), instruction=None)


def _task(of: LightevalTaskConfig, name: str, prompt: Any) -> LightevalTaskConfig:
    """Both releases read the same dataset of the hub."""
    return LightevalTaskConfig(
        name=f"published:{name}",
        prompt_function=prompt,
        hf_repo=of.hf_repo,
        hf_subset=of.hf_subset,
        hf_avail_splits=of.hf_avail_splits,
        evaluation_splits=of.evaluation_splits,
        generation_size=GENERATION_SIZE,
        metrics=[_metric(SETTINGS[name])],
        version=of.version,
    )


_NUMBER = Metrics.expr_gold_metric.value.sample_level_fn
# By task: how its scorer reads answers.
SETTINGS = {
    "aime24": _NUMBER,
    "aime25": _NUMBER,
    "math_500": _latex_gold(),
    "gpqa:diamond": Metrics.gpqa_instruct_metric.value.sample_level_fn,
}

TASKS_TABLE = [
    _task(aime.aime24, "aime24", aime_prompt),
    _task(aime.aime25, "aime25", aime_prompt),
    _task(math_500.math_500, "math_500", math_500_prompt),
    _task(gpqa.gpqa_diamond_instruct, "gpqa:diamond", gpqa_prompt),
]
