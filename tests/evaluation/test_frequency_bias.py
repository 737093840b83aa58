"""The closed-form bias, beside its definition in float64."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slot_vllm.evaluation import frequency_bias
from slot_vllm.evaluation.control import Bias
from slot_vllm.evaluation.frequency_bias import of_prompt

PROMPT = [7, 3, 9, 3, 3, 12, 40, 9, 7, 7, 3, 5]


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def _defined(model: Any, prompt: list[int], strength: float, pseudo: float) -> dict[int, float]:
    """log(p / m) of smoothed frequencies, less that of a token that the prompt lacks."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, :-1].double()
    mean = logits.softmax(-1).mean(0)
    targets = len(prompt) - 1
    counts = Counter(prompt[1:])

    def log_ratio(count: int, m: float) -> float:
        return math.log((count + pseudo * m) / (targets + pseudo) / m)

    absent = log_ratio(0, 0.5)
    return {v: strength * (log_ratio(c, float(mean[v])) - absent) for v, c in counts.items()}


@pytest.mark.parametrize("rows", [256, 5, 1])
@pytest.mark.parametrize(("strength", "pseudo"), [(1.0, 1.0), (0.25, 30.0)])
def test_it_is_what_it_says(
    model: Any, rows: int, strength: float, pseudo: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequency_bias, "_ROWS", rows)
    found = of_prompt(model, PROMPT).bias(Bias(strength=strength, pseudo_count=pseudo))
    expected = _defined(model, PROMPT, strength, pseudo)
    assert found.keys() == expected.keys()
    for token, value in expected.items():
        assert found[token] == pytest.approx(value, abs=1e-4)


def test_a_single_token_has_no_bias(model: Any) -> None:
    assert of_prompt(model, [7]).bias(Bias(strength=1, pseudo_count=1)) == {}
