"""lighteval 0.8.1's ``extractive_match``, made of the installed lighteval's pieces.

The two releases extract and compare alike but for what the patterns accept: later ones allow white
space before a colon, take ``(A)`` for ``A`` and look for a letter at the start of each line.
"""

import functools
import re
from collections.abc import Sequence

from lighteval.metrics.dynamic_metrics import MultilingualExtractiveMatchMetric
from lighteval.metrics.utils.extractive_match_utils import (
    ExtractionTarget,
    extract_target_from_pred,
    get_extraction_regexes,
)
from lighteval.metrics.utils.math_comparison import compare_gold_target
from lighteval.tasks.requests import Doc

Patterns = list[tuple[re.Pattern[str], int]]

_SPACE_BEFORE_COLON = re.compile(r"\\s\?(?=\[:\\:\])")
_LETTER_IN_BRACKETS = re.compile(r"\(\?:(\w)\|\\\(\1\\\)\)")
_WORD_START = re.compile(r"\(\?:(?=\^\|\\ \))")
_LETTER_STARTS_LINE = 210  # the priority of the pattern that 0.8.1 does not have


def match(metric: MultilingualExtractiveMatchMetric, text: str, doc: Doc) -> bool:
    """Whether the answer that ``text`` gives is the gold one, extracted and compared with the
    settings of ``metric``."""
    wanted = patterns(metric, doc, metric.gold_extraction_target)
    golds = [_extracted(metric, gold, wanted) for gold in doc.get_golds()]
    if not all(golds):
        golds = [[gold] for gold in doc.get_golds()]
    found = _extracted(metric, text, patterns(metric, doc, metric.pred_extraction_target))
    return any(
        compare_gold_target(gold, found, metric.precision, timeout_seconds=metric.timeout_seconds)
        for gold in golds
    )


def patterns(
    metric: MultilingualExtractiveMatchMetric, doc: Doc, targets: Sequence[ExtractionTarget]
) -> list[tuple[Patterns, ExtractionTarget]]:
    """What is looked for, and in which order, by target: as 0.8.1 does."""
    return [
        ([(_as_published(p), rank) for p, rank in found if rank != _LETTER_STARTS_LINE], target)
        for found, target in get_extraction_regexes(doc, targets, metric.language)
    ]


def _extracted(
    metric: MultilingualExtractiveMatchMetric,
    text: str,
    wanted: list[tuple[Patterns, ExtractionTarget]],
) -> list[object]:
    return extract_target_from_pred(
        text, wanted, metric.fallback_mode, metric.extraction_mode, metric.timeout_seconds
    )


@functools.lru_cache(maxsize=64)
def _as_published(pattern: re.Pattern[str]) -> re.Pattern[str]:
    text = _SPACE_BEFORE_COLON.sub("", pattern.pattern)
    text = _WORD_START.sub("(", text)
    return re.compile(_LETTER_IN_BRACKETS.sub(r"\1", text), pattern.flags)
