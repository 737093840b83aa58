"""What fails in the state of one runner, driven without an engine."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slot_vllm.engine.worker.failures import REASONS, Failure, Failures
from slot_vllm.engine.worker.runners import begin_step
from slot_vllm.optim.optimize import optimize
from tests.conftest import ROOT
from tests.engine.test_deltas import (
    TOKENS,
    VOCABULARY,
    arrival,
    begin,
    expected_delta,
    hidden_of,
    make_deltas,
    step,
)

OTHER = [7, 7, 2, 40, 11]


def fails(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("injected")


def assert_right(deltas: Any, name: str, tokens: list[int]) -> None:
    learned = deltas.find(name)
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(tokens), rtol=1e-4, atol=2e-4)


def test_every_reason_is_documented_and_always_there() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    stats = make_deltas().stats()
    for reason in REASONS:
        assert f"| `{reason}` |" in settings
        assert stats[f"failed.{reason}"] == 0


@pytest.mark.parametrize("error", [MemoryError("x"), torch.OutOfMemoryError("x")])
def test_memory_that_ran_out_is_a_reason_of_its_own(error: Exception) -> None:
    assert Failure.of(error, "optimizer").reason == "out_of_memory"
    assert Failure.of(ValueError("x"), "optimizer").reason == "optimizer"


def test_each_reason_is_logged_once_and_what_is_kept_is_bounded(
    slot_log: pytest.LogCaptureFixture,
) -> None:
    failures = Failures(Counter())
    for i in range(40):
        failures.count(Failure.of(RuntimeError(f"error {i}"), "table"), "a\nforged line")
        failures.count(Failure.of(RuntimeError(f"error {i}"), "optimizer"), "b")
    assert [r.getMessage().count("\n") for r in slot_log.records] == [0, 0]
    assert len(failures.errors) == 16
    assert "error 39" in failures.errors[-1]


def test_a_group_that_does_not_fit_is_learned_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_alone(head: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if len(prompts) > 1 or len(prompts[0].tokens) == len(OTHER):
            raise torch.OutOfMemoryError("injected")
        return optimize(head, prompts, *args, **kwargs)

    monkeypatch.setattr("slot_vllm.engine.worker.deltas.optimize", only_alone)
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    additions = step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    assert additions.rows[0] > 0 and additions.rows[1] == 0
    assert_right(deltas, "a", TOKENS)
    stats = deltas.stats()
    assert (stats["optimized"], stats["failed"], stats["failed.out_of_memory"]) == (1, 1, 1)


def test_hidden_states_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    table = hidden_of(list(range(VOCABULARY)))
    for value in (torch.nan, torch.inf, -torch.inf):
        deltas = make_deltas()
        with monkeypatch.context() as patch:
            broken = table.clone()
            broken[OTHER[1], 3] = value
            patch.setattr("tests.engine.test_deltas.hidden_of", lambda tokens, t=broken: t[tokens])
            begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
            additions = step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
        assert not additions.biases[additions.rows[1]].any()
        assert_right(deltas, "a", TOKENS)
        assert deltas.find("b") is None
        stats = deltas.stats()
        assert (stats["optimized"], stats["failed"], stats["failed.non_finite"]) == (1, 1, 1)
        # Not shared: learned anew, and right.
        begin(deltas, [arrival("c-1", OTHER)])
        step(deltas, ("c-1", OTHER, 0))
        assert_right(deltas, "c", OTHER)


def test_the_host_says_when_it_learns_of_it(slot_log: pytest.LogCaptureFixture) -> None:
    deltas = make_deltas()
    deltas.linear_head.weight[3, 2] = torch.nan  # type: ignore[attr-defined]
    for name in "ab":
        begin(deltas, [arrival(f"{name}-1", TOKENS)])
        step(deltas, (f"{name}-1", TOKENS, 0))
    begin(deltas)
    assert ["non_finite" in record.getMessage() for record in slot_log.records] == [True]


@pytest.mark.parametrize(("lr", "rose"), [(0.05, 0), (100, 1)])
def test_a_loss_that_rose_is_counted_and_applied(lr: float, rose: int) -> None:
    deltas = make_deltas(report_loss=True)
    begin(deltas, [arrival("a-1", TOKENS, lr=lr)])
    additions = step(deltas, ("a-1", TOKENS, 0))
    assert additions.biases[additions.rows[0]].any()
    stats = deltas.stats()
    assert (stats["loss_rose"], stats["optimized"], stats["failed"]) == (rose, 1, 0)


@pytest.mark.parametrize("rounding", ["exact", "model"])
def test_a_shift_that_overflows_is_not_applied(rounding: str) -> None:
    deltas = make_deltas()
    deltas.linear_head.weight[40] = 3e38  # type: ignore[attr-defined]
    zeros = torch.zeros(len(TOKENS), 16)
    ends = torch.ones(2, 16)
    finite = deltas.table.fill(
        [1, 2],
        torch.cat([zeros[:1], 2 * ends[:1]]),
        [rounding == "model"] * 2,
        deltas.linear_head.head(),
    )
    assert [bool(f) for f in finite] == [True, False]
    assert not deltas.table.biases[2].any() and not deltas.table.rounded[2].any()


def test_an_arrival_that_fails_is_served_without_and_counted_once() -> None:
    deltas = make_deltas()
    broken = arrival("a-1", TOKENS)
    del broken.lora_request
    for _ in range(2):  # the V2 runner gets it again when it resumes
        begin(deltas, [broken, arrival("b-1", OTHER)])
    additions = step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    assert additions.rows[0] == 0
    assert_right(deltas, "b", OTHER)
    assert (deltas.stats()["failed.arrival"], deltas.stats()["failed"]) == (1, 1)
    begin(deltas, finished={"a-1", "b-1"})
    assert not deltas.bypassed and not deltas.requests


def test_a_departure_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    with monkeypatch.context() as patch:
        patch.setattr(deltas.rows, "release", fails)
        begin(deltas, finished={"a-1", "b-1"})
    assert deltas.stats()["failed.departure"] == 2
    assert not deltas.requests and not len(deltas.table)
    assert_right(deltas, "a", TOKENS)


def test_a_batch_that_cannot_be_read_costs_the_steps_requests_only() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    scheduled = SimpleNamespace(
        scheduled_new_reqs=[],
        finished_req_ids=set(),
        preempted_req_ids=None,
        num_scheduled_tokens={"b-1": 1, "plain": 1},
    )
    deltas.begin_step(scheduled)
    deltas.stage(torch.zeros(2, 1), fails)
    assert deltas.take() is None
    assert (deltas.stats()["failed.batch"], deltas.stats()["failed"]) == (1, 1)
    # Later steps are right: the one has its delta, the other one has none.
    deltas.begin_step(scheduled)
    additions = step(deltas, ("a-1", [1], len(TOKENS)), ("b-1", [1], len(OTHER)))
    assert additions.rows[0] > 0 and additions.rows[1] == 0


def test_an_unreadable_step_costs_all_deltas() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0))
    begin_step(
        deltas,
        SimpleNamespace(
            finished_req_ids=(),
            scheduled_new_reqs=[arrival("b-1", OTHER), arrival("c-1", OTHER, steps=0)],
        ),
    )
    assert step(deltas, ("a-1", [1], len(TOKENS)), ("b-1", OTHER, 0)) is None
    stats = deltas.stats()
    assert (stats["failed.arrival"], stats["failed"], stats["plain"]) == (2, 2, 1)
    # As V2 says of one that was preempted: it is in its answer by now.
    begin(deltas, [arrival("b-1", OTHER), arrival("c-1", OTHER, steps=0)])
    assert deltas.requests["b-1"].failed and deltas.stats()["plain"] == 1
    begin(deltas, finished={"a-1", "b-1", "c-1"})
    assert not deltas.requests and not deltas.bypassed and not deltas.plain


def test_only_what_was_staged_fails_at_the_logits() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(deltas, ("a-1", TOKENS, 0), ("b-1", OTHER[:2], 0))
    assert deltas.attempt(fails) is None
    assert (deltas.stats()["failed.logits"], deltas.stats()["failed"]) == (1, 1)
    begin(deltas)
    additions = step(deltas, ("a-1", [1], len(TOKENS)), ("b-1", OTHER[2:], 2))
    assert additions.rows[0] == 0 and additions.rows[1] > 0
    assert_right(deltas, "b", OTHER)


def test_what_another_worker_failed_at_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Failure("optimizer", "on another worker", "")
    deltas = make_deltas()
    monkeypatch.setattr(
        deltas.failures, "agreed", lambda here: [f or elsewhere for f in here] if here else here
    )
    begin(deltas, [arrival("a-1", TOKENS)])
    assert step(deltas, ("a-1", TOKENS, 0)) is None
    assert deltas.stats()["failed"] == 1


def test_who_leaves_in_a_step_that_is_not_understood_is_forgotten() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0))
    begin_step(deltas, SimpleNamespace(finished_req_ids={"a-1"}))
    assert not deltas.requests and not len(deltas.table)


def test_ranks_agree_on_a_reason() -> None:
    ranks: Any = SimpleNamespace(
        largest=lambda codes: [max(code, 1 + REASONS.index("optimizer")) for code in codes]
    )
    mine = Failure.of(ValueError("mine"), "hidden_cache")
    own, others = Failures(Counter(), ranks).agreed([mine, None])
    assert own is not None and (own.reason, own.message) == ("optimizer", mine.message)
    assert others is not None and others.reason == "optimizer"
    assert "another tensor-parallel rank failed" in others.message
    assert Failures(Counter()).agreed([mine, None]) == [mine, None]
