"""The fixed workloads, and what is changed of them."""

import json

import pytest
from pydantic import ValidationError

from slot_vllm.bench.serve import SHAPES
from slot_vllm.bench.workload import Load, Workload, differences, make_prompts, read_workloads

FIXED = Workload(
    input_tokens=5,
    output_tokens=7,
    loads=(Load(concurrency=1, requests=2), Load(concurrency=4, requests=8)),
)


def test_the_fixed_workloads_are_the_ones_that_results_name() -> None:
    workloads = read_workloads(SHAPES / "workloads.yaml")
    assert {
        name: (one.input_tokens, one.output_tokens, [load.concurrency for load in one.loads])
        for name, one in workloads.items()
    } == {"reasoning": (150, 4096, [64]), "short": (150, 256, [1, 16])}
    for load in (load for one in workloads.values() for load in one.loads):
        assert load.requests >= load.concurrency and load.requests % load.concurrency == 0


def test_the_shapes_are_those_of_the_models() -> None:
    known = {
        "qwen2.5-0.5b": (896, 151936, 24, True),
        "qwen2.5-7b": (3584, 152064, 28, False),
        "llama-3-70b": (8192, 128256, 80, False),
    }
    for name, expected in known.items():
        model = json.loads((SHAPES / name / "config.json").read_text())
        keys = ("hidden_size", "vocab_size", "num_hidden_layers", "tie_word_embeddings")
        assert tuple(model[key] for key in keys) == expected


def test_changes_are_told() -> None:
    assert FIXED.changed(None, None, None, None) == FIXED
    assert differences(FIXED, FIXED) == {}
    used = FIXED.changed(None, 3, 4, 1)
    assert (used.input_tokens, used.output_tokens) == (5, 3)
    assert used.loads == (Load(concurrency=4, requests=1),)
    found = differences(FIXED, used)
    assert found["output_tokens"] == {"fixed": 7, "used": 3}
    assert found["loads"]["used"] == [{"concurrency": 4, "requests": 1}]
    assert set(found) == {"output_tokens", "loads"}
    assert FIXED.changed(None, None, 3, None).loads == (Load(concurrency=3, requests=3),)


@pytest.mark.parametrize("bad", [{"output_tokens": 1}, {"input_tokens": 0}, {"more": 1}])
def test_what_is_no_workload(bad: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        Workload(**{**FIXED.model_dump(), **bad})


def test_prompts_differ_between_rounds_and_within_one() -> None:
    first, second = make_prompts(3, 40, 1000, 1), make_prompts(3, 40, 1000, 2)
    assert first == make_prompts(3, 40, 1000, 1)
    assert len({tuple(prompt) for prompt in first + second}) == 6
    assert all(len(p) == 40 and min(p) >= 0 and max(p) < 1000 for p in first)
