"""The command that measures; no test looks at a time."""

import json

import pytest
import torch

from slot_vllm.bench.__main__ import main
from slot_vllm.bench.apply import BIAS, EXTRA_ROWS, measure


def test_both_ways_add_w_delta() -> None:
    variants = measure(64, 500, 3, torch.bfloat16, "cpu", rounds=1)["variants"]
    assert variants[BIAS]["bytes_per_request"] == 4 * 500
    # The bias has float32's roundings, extra rows those of delta and of the logits to bf16.
    assert variants[BIAS]["error"] < 1e-5 < variants[EXTRA_ROWS]["error"] < 0.02


def test_json_alone_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--hidden", "32", "--vocab", "99", "--rows", "1", "2", "--rounds", "1"]
    assert main(["apply", "--json", "--device", "cpu", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [step["rows"] for step in result["steps"]] == [1, 2]
