"""The least time that learning needs."""

import dataclasses

import pytest
import torch

from slot_vllm.bench import floor
from slot_vllm.bench.shape import Shape, make_problem
from slot_vllm.bench.timing import Timing

SHAPE = Shape(
    hidden=64,
    vocabulary=501,
    tokens=12,
    requests=2,
    steps=3,
    dtype="bfloat16",
    device="cpu",
    workspace_mb=2,
)


def test_each_part_does_what_it_is_named_after() -> None:
    head, _ = make_problem(SHAPE)
    results = {name: part() for name, part in floor.parts(head, SHAPE).items()}
    rows = torch.ones(SHAPE.rows, SHAPE.hidden, dtype=torch.bfloat16)
    assert torch.equal(results[floor.PRODUCT], rows @ head.weight.T)
    assert torch.equal(results[floor.EXPONENTIALS], results[floor.PRODUCT].exp())
    # Of the bytes as integers, the widest that fill W and the logits.
    assert results[floor.WEIGHT] == head.weight.flatten().view(torch.int64).sum()
    assert results[floor.LOGITS].dtype == torch.int64


def test_the_floor_is_the_sum_of_the_parts_as_often_as_they_are_done() -> None:
    seconds = {floor.PRODUCT: 1.0, floor.EXPONENTIALS: 0.5, floor.WEIGHT: 0.1, floor.LOGITS: 0.01}
    timings = {name: Timing(value, value, None) for name, value in seconds.items()}
    result = floor.floor(SHAPE, timings, ours=4.06, bare=1.1)
    assert result["floor_parts"] == pytest.approx(
        {floor.PRODUCT: 1.0, floor.EXPONENTIALS: 0.5, floor.WEIGHT: 0.5, floor.LOGITS: 0.03}
    )
    assert result["floor_seconds"] == pytest.approx(2.03)
    assert result["floor_multiple"] == pytest.approx(2.0)


def test_the_product_is_the_faster_of_two() -> None:
    timings = {name: Timing(1.0, 1.0, None) for name in floor.parts(make_problem(SHAPE)[0], SHAPE)}
    for bare, product in ((0.7, 0.7), (1.3, 1.0)):
        parts = floor.floor(SHAPE, timings, ours=1.0, bare=bare)["floor_parts"]
        assert parts[floor.PRODUCT] == product


def test_more_logits_than_are_timed_count_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    row = SHAPE.vocabulary * 2
    monkeypatch.setattr(floor, "_MOST_BYTES", 6 * row)
    head, _ = make_problem(SHAPE)
    assert floor.parts(head, SHAPE)[floor.PRODUCT]().shape == (6, SHAPE.vocabulary)
    timings = {name: Timing(1.0, 1.0, None) for name in floor.parts(head, SHAPE)}
    one_step = dataclasses.replace(SHAPE, steps=1)
    found = floor.floor(one_step, timings, ours=1.0, bare=5.0)["floor_parts"]
    assert found == {floor.PRODUCT: 4, floor.EXPONENTIALS: 4, floor.WEIGHT: 1, floor.LOGITS: 4}


def test_rows_that_requests_share_are_multiplied_once() -> None:
    shape = dataclasses.replace(SHAPE, requests=3, shared=8)
    _, (first, *others) = make_problem(shape)
    assert all(torch.equal(one.hidden[:8], first.hidden[:8]) for one in others)
    assert not any((one.hidden[8:] == first.hidden[8:]).all(dim=1).any() for one in others)
    timings = {name: Timing(1.0, 1.0, None) for name in floor.parts(make_problem(shape)[0], shape)}
    parts = floor.floor(shape, timings, ours=1.0, bare=0.1)["floor_parts"]
    assert parts[floor.PRODUCT] == pytest.approx((36 - 16) / 36)
    assert parts[floor.EXPONENTIALS] == 1.0
