"""W delta of finished requests, for all tokens of the vocabulary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.cases import Case, random_tokens
from tests.engine.engines import runner_of
from tests.engine.generate import delta_of, run, shifts_of


@pytest.mark.any_runner
@pytest.mark.parametrize(
    ("architecture", "weight"),
    # Gemma2 has a soft cap, which comes after the shift.
    [("gemma2", "model.embed_tokens.weight"), ("llama", "lm_head.weight")],
)
def test_token_shifts_are_w_delta(
    architecture: str,
    weight: str,
    tiny_models: Callable[[str, bool], str],
    engine: Callable[..., Any],
) -> None:
    model = tiny_models(architecture, architecture == "gemma2")
    llm = engine(model, slot={}, num_gpu_blocks_override=200)
    lengths = ((40, 5), (90, 3), (1, 5), (20, 0))
    cases = [Case(random_tokens(n, seed=800 + n), steps, 0.5, 2) for n, steps in lengths]
    *learned, single, without = run(llm, cases)
    head = load_file(Path(model) / "model.safetensors")[weight]
    assert runner_of(llm).slot_state.linear_head._lm_head.weight.shape[0] > head.shape[0]
    for output in learned:
        shifts, delta = shifts_of(llm, output), delta_of(llm, output)
        assert shifts is not None
        assert shifts.abs().max() > 0.1
        torch.testing.assert_close(shifts, head @ torch.tensor(delta), rtol=1e-5, atol=1e-5)
    # Nothing to learn from, and nothing learned.
    nothing = shifts_of(llm, single)
    assert nothing is not None
    assert nothing.shape == head.shape[:1] and not nothing.any()
    assert shifts_of(llm, without) is None
