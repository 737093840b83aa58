"""The word problems of the study as a lighteval task, scored by what an answer is right about.

``exact``: the boxed answer is the right one, in the format that is asked for. ``arithmetic``: the
worked steps end in the right number, whatever is written then. ``adherence``: what is boxed is the
number that the worked steps end in, right or wrong, in the format that is asked for.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc, SamplingMethod
from lighteval.tasks.tasks.aime import aime24, aime_prompt

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from demo_problems import FORMATS

_WRITE = {form.name: form.write for form in FORMATS}
_RESULT = re.compile(r"(?:=|Start:) (\d+)\.")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def judge(answer: str, number: int, form: str) -> dict[str, bool]:
    """The three scores of an answer to a problem whose number is to be written in a format."""
    results, boxed = _RESULT.findall(answer), _BOXED.findall(answer)
    said = boxed[-1] if boxed else None
    found = int(results[-1]) if results else None
    return {
        "exact": said == _WRITE[form](number),
        "arithmetic": found == number,
        "adherence": found is not None and said == _WRITE[form](found),
    }


class _Judged(SampleLevelComputation):
    def __init__(self, score: str) -> None:
        self.score = score

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        problem = doc.specific or {}
        judged = judge(model_response.text[0], problem["number"], problem["format"])
        return float(judged[self.score])


def _prompt(line: dict[str, Any], task_name: str) -> Doc:
    doc = aime_prompt(line, task_name)
    doc.specific = {"number": line["number"], "format": line["format"]}
    return doc


TASKS_TABLE = [
    replace(
        aime24,
        name="formats",
        prompt_function=_prompt,
        metrics=[
            SampleLevelMetric(
                metric_name=score,
                higher_is_better=True,
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=_Judged(score),
                corpus_level_fn=np.mean,
            )
            for score in ("exact", "arithmetic", "adherence")
        ],
    )
]
