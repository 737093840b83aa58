"""``ceval:SUBJECT``: C-Eval's questions, to be answered with a letter in the model's own words;
``ceval`` is all 52 subjects.

lighteval has C-Eval by log-likelihoods only, which SLOT does not touch. Data and subjects: Huang et
al. 2023, arXiv 2305.08322; the answers of the hub's test split are not public, so ``val`` is asked.
"""

import functools
from typing import Any

from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import IndicesExtractionConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc
from lighteval.utils.language import Language

from slot_vllm.evaluation.benchmarks.raw_text import metric
