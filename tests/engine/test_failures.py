"""What fails in the state of one runner, driven without an engine."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slot_vllm.engine.worker.failure import REASONS, Failure
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.optim.optimize import optimize
from tests.conftest import ROOT
from tests.engine.test_step import (
    TOKENS,
    VOCABULARY,
    arrival,
    begin,
    expected_delta,
    hidden_of,
    make_state,
    step,
)

OTHER = [7, 7, 2, 40, 11]


def fails(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("injected")


def assert_right(state: Any, name: str, tokens: list[int]) -> None:
    learned = state.registry.find(name)
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(tokens), rtol=1e-4, atol=2e-4)


def test_every_reason_is_documented_and_always_there() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    stats = make_state().stats()
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
    failures = make_state().failures
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

    monkeypatch.setattr("slot_vllm.engine.worker.learning.optimize", only_alone)
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    additions = step(state, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    assert additions.rows[0] > 0 and additions.rows[1] == 0
    assert_right(state, "a", TOKENS)
    stats = state.stats()
    assert (stats["optimized"], stats["failed"], stats["failed.out_of_memory"]) == (1, 1, 1)


def test_hidden_states_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    table = hidden_of(list(range(VOCABULARY)))
    for value in (torch.nan, torch.inf, -torch.inf):
        state = make_state()
        with monkeypatch.context() as patch:
            broken = table.clone()
            broken[OTHER[1], 3] = value
            patch.setattr("tests.engine.test_step.hidden_of", lambda tokens, t=broken: t[tokens])
            begin(state, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
            additions = step(state, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
        assert not additions.biases[additions.rows[1]].any()
        assert_right(state, "a", TOKENS)
        assert state.registry.find("b") is None
        stats = state.stats()
        assert (stats["optimized"], stats["failed"], stats["failed.non_finite"]) == (1, 1, 1)
        # Not shared: learned anew, and right.
        begin(state, [arrival("c-1", OTHER)])
        step(state, ("c-1", OTHER, 0))
        assert_right(state, "c", OTHER)


def test_the_host_says_when_it_learns_of_it(slot_log: pytest.LogCaptureFixture) -> None:
    state = make_state()
    state.linear_head.weight[3, 2] = torch.nan  # type: ignore[attr-defined]
    for name in "ab":
        begin(state, [arrival(f"{name}-1", TOKENS)])
        step(state, (f"{name}-1", TOKENS, 0))
    begin(state)
    assert ["non_finite" in record.getMessage() for record in slot_log.records] == [True]


@pytest.mark.parametrize(("lr", "rose"), [(0.05, 0), (100, 1)])
def test_a_loss_that_rose_is_counted_and_applied(lr: float, rose: int) -> None:
    state = make_state(report_loss=True)
    begin(state, [arrival("a-1", TOKENS, lr=lr)])
    additions = step(state, ("a-1", TOKENS, 0))
    assert additions.biases[additions.rows[0]].any()
    stats = state.stats()
    assert (stats["loss_rose"], stats["optimized"], stats["failed"]) == (rose, 1, 0)


@pytest.mark.parametrize("rounding", ["exact", "model"])
def test_a_shift_that_overflows_is_not_applied(rounding: str) -> None:
    state = make_state()
    state.linear_head.weight[40] = 3e38  # type: ignore[attr-defined]
    zeros = torch.zeros(len(TOKENS), 16)
    ends = torch.ones(2, 16)
    finite = state.table.fill(
        [1, 2],
        torch.cat([zeros[:1], 2 * ends[:1]]),
        [rounding == "model"] * 2,
        state.linear_head.head(),
    )
    assert [bool(f) for f in finite] == [True, False]
    assert not state.table.biases[2].any() and not state.table.rounded[2].any()


def test_an_arrival_that_fails_is_served_without_and_counted_once() -> None:
    state = make_state()
    broken = arrival("a-1", TOKENS)
    del broken.lora_request
    for _ in range(2):  # the V2 runner gets it again when it resumes
        begin(state, [broken, arrival("b-1", OTHER)])
    additions = step(state, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    assert additions.rows[0] == 0
    assert_right(state, "b", OTHER)
    assert (state.stats()["failed.arrival"], state.stats()["failed"]) == (1, 1)
    begin(state, finished={"a-1", "b-1"})
    assert not state.registry.requests


def test_a_departure_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(state, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    with monkeypatch.context() as patch:
        patch.setattr(state.rows, "release", fails)
        begin(state, finished={"a-1", "b-1"})
    assert state.stats()["failed.departure"] == 2
    assert not state.registry.requests and not len(state.table)
    assert_right(state, "a", TOKENS)


def test_a_batch_that_cannot_be_read_costs_the_steps_requests_only() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(state, ("a-1", TOKENS, 0), ("b-1", OTHER, 0))
    scheduled = SimpleNamespace(
        scheduled_new_reqs=[],
        finished_req_ids=set(),
        preempted_req_ids=None,
        num_scheduled_tokens={"b-1": 1, "plain": 1},
    )
    state.step.begin_step(scheduled)
    state.step.stage(torch.zeros(2, 1), fails)
    assert state.step.take() is None
    assert (state.stats()["failed.batch"], state.stats()["failed"]) == (1, 1)
    # Later steps are right: the one has its delta, the other one has none.
    state.step.begin_step(scheduled)
    additions = step(state, ("a-1", [1], len(TOKENS)), ("b-1", [1], len(OTHER)))
    assert additions.rows[0] > 0 and additions.rows[1] == 0


def test_an_unreadable_step_costs_all_deltas() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    state.step.begin_step(
        SimpleNamespace(
            finished_req_ids=(),
            scheduled_new_reqs=[arrival("b-1", OTHER), arrival("c-1", OTHER, steps=0)],
        )
    )
    assert step(state, ("a-1", [1], len(TOKENS)), ("b-1", OTHER, 0)) is None
    stats = state.stats()
    assert (stats["failed.arrival"], stats["failed"], stats["plain"]) == (2, 2, 1)
    # As V2 says of one that was preempted: it is in its answer by now.
    begin(state, [arrival("b-1", OTHER), arrival("c-1", OTHER, steps=0)])
    assert state.registry.requests["b-1"].status == "failed" and state.stats()["plain"] == 1
    begin(state, finished={"a-1", "b-1", "c-1"})
    assert not state.registry.requests


def test_only_what_was_staged_fails_at_the_logits() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", OTHER)])
    step(state, ("a-1", TOKENS, 0), ("b-1", OTHER[:2], 0))
    assert state.step.attempt(fails) is None
    assert (state.stats()["failed.logits"], state.stats()["failed"]) == (1, 1)
    begin(state)
    additions = step(state, ("a-1", [1], len(TOKENS)), ("b-1", OTHER[2:], 2))
    assert additions.rows[0] == 0 and additions.rows[1] > 0
    assert_right(state, "b", OTHER)


def test_what_another_worker_failed_at_fails_here(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Failure("optimizer", "on another worker", "")
    state = make_state()
    monkeypatch.setattr(
        state.failures, "agreed", lambda here: [f or elsewhere for f in here] if here else here
    )
    begin(state, [arrival("a-1", TOKENS)])
    assert step(state, ("a-1", TOKENS, 0)) is None
    assert state.stats()["failed"] == 1


def test_who_leaves_in_a_step_that_is_not_understood_is_forgotten() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    state.step.begin_step(SimpleNamespace(finished_req_ids={"a-1"}))
    assert not state.registry.requests and not len(state.table)


def test_ranks_agree_on_a_reason() -> None:
    ranks: Any = SimpleNamespace(
        largest=lambda codes: [max(code, 1 + REASONS.index("optimizer")) for code in codes]
    )
    mine = Failure.of(ValueError("mine"), "hidden_cache")
    own, others = Failures(Counter(), make_state().rows, ranks).agreed([mine, None])
    assert own is not None and (own.reason, own.message) == ("optimizer", mine.message)
    assert others is not None and others.reason == "optimizer"
    assert "another tensor-parallel rank failed" in others.message
    assert make_state().failures.agreed([mine, None]) == [mine, None]
