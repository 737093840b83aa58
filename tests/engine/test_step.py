"""The state of one runner, driven without an engine."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from slot_vllm import __version__
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.engine.worker.ranks import ALONE
from slot_vllm.engine.worker.runner_state import RunnerState
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotConfig, SlotParams
from tests.engine.test_linear_head import Model, ThreadRanks, sharded
from tests.optim.test_shard import Group

SIZE, VOCABULARY = 16, 50


class FixedHead:
    ranks = ALONE
    vocabulary = VOCABULARY

    def __init__(self) -> None:
        self.weight = torch.randn(VOCABULARY, SIZE, generator=torch.Generator().manual_seed(0))

    def head(self) -> Head:
        return Head(self.weight)

    def shard(self) -> None:
        """It is whole."""

    def describe(self) -> str:
        return "fixed"


def make_state(capacity: int = 4, **options: Any) -> RunnerState:
    config = SlotConfig(**{"workspace_mb": 1, "keep_deltas": 4, **options})
    return RunnerState(config, FixedHead(), capacity, torch.device("cpu"))  # type: ignore[arg-type]


def arrival(
    req_id: str,
    tokens: list[int],
    steps: int = 2,
    bypassed: str | None = None,
    cache_salt: str | None = None,
    lora_request: Any = None,
    mm_features: Any = (),
    version: str = __version__,
    counted: bool = True,
    **params: Any,
) -> Any:
    resolved = {
        "request_id": req_id.partition("-")[0],
        "params": SlotParams(steps=steps, **params).model_dump(mode="json"),
        "bypassed": bypassed,
        "cache_salt": cache_salt,
        "version": version,
        "counted": counted,
    }
    sampling_params = SimpleNamespace(extra_args={RESOLVED: resolved})
    return SimpleNamespace(
        req_id=req_id,
        sampling_params=sampling_params,
        prompt_token_ids=tokens,
        lora_request=lora_request,
        mm_features=mm_features,
        prompt_embeds=None,
    )


def begin(state: RunnerState, new: Any = (), finished: Any = (), preempted: Any = None) -> None:
    output = SimpleNamespace(
        scheduled_new_reqs=list(new),
        finished_req_ids=set(finished),
        preempted_req_ids=preempted,
        num_scheduled_tokens=dict.fromkeys((n.req_id for n in new), 1),
    )
    state.step.begin_step(output)


def hidden_of(tokens: list[int]) -> torch.Tensor:
    table = torch.randn(VOCABULARY * 2, SIZE, generator=torch.Generator().manual_seed(1))
    return table[tokens]


def step(state: RunnerState, *parts: tuple[str, list[int], int]) -> Any:
    """One step with (request, its tokens of this step, where they start); what was staged."""
    sizes = [len(tokens) for _, tokens, _ in parts]
    view = BatchView(
        req_ids=[req_id for req_id, _, _ in parts],
        starts=np.array([start for _, _, start in parts]),
        query_start=np.cumsum([0, *sizes]),
        slots=np.arange(len(parts)),
        row_slots=torch.arange(len(parts)),
        num_slots=len(parts),
        positions=lambda: torch.tensor([start + len(tokens) - 1 for _, tokens, start in parts]),
    )
    state.step.stage(torch.cat([hidden_of(tokens) for _, tokens, _ in parts]), lambda: view)
    return state.step.take()


def expected_delta(tokens: list[int], steps: int = 2) -> torch.Tensor:
    prompt = Prompt(hidden_of(tokens), torch.tensor(tokens), SlotParams(steps=steps))
    return oracle(FixedHead().head(), prompt).delta.float()


TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_prompt_in_parts() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    assert step(state, ("a-1", TOKENS[:3], 0)) is None
    assert state.buffers.device_bytes == len(TOKENS) * SIZE * 4
    additions = step(state, ("a-1", TOKENS[3:], 3))
    assert state.buffers.device_bytes == 0
    learned = state.registry.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    row = additions.rows[0]
    torch.testing.assert_close(additions.biases[row], FixedHead().weight @ learned.delta)
    # Generated tokens are applied to, never learned from.
    assert step(state, ("a-1", [7], len(TOKENS))) is not None
    assert state.stats()["optimized"] == 1


def test_preempted_within_its_prompt_it_starts_again() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS[:5], 0))
    begin(state, preempted={"a-1"})
    assert state.buffers.device_bytes == 0
    # The V2 runner gets it as a new request.
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS[:2], 0))
    step(state, ("a-1", TOKENS[2:], 2))
    learned = state.registry.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    assert state.buffers.device_bytes == 0


def test_a_resumed_request_keeps_its_delta_and_gets_a_row_again() -> None:
    state = make_state(capacity=1)
    begin(state, [arrival("a-1", TOKENS)])
    first = step(state, ("a-1", TOKENS, 0))
    bias = first.biases[first.rows[0]].clone()
    begin(state, [arrival("b-1", TOKENS[::-1])], preempted={"a-1"})
    step(state, ("b-1", TOKENS[::-1], 0))
    preempted = state.registry.get("a-1")
    assert preempted is not None and state.table.row(preempted.table_key) is None
    begin(state, [arrival("a-1", TOKENS)], preempted={"b-1"})
    again = step(state, ("a-1", [*TOKENS, 7], 0))
    assert torch.equal(again.biases[again.rows[0]], bias)
    assert [state.stats()[name] for name in ("optimized", "shared")] == [2, 0]


def test_generated_tokens_in_the_step_of_a_prompt_are_none_of_it() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", [*TOKENS, 7], 0))
    learned = state.registry.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)


def test_an_id_used_again_after_an_abort_is_another_request() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    begin(state, [arrival("a-1", TOKENS[:4])], finished={"a-1"})
    step(state, ("a-1", TOKENS[:4], 0))
    learned = state.registry.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS[:4]), rtol=1e-4, atol=2e-5)
    begin(state, finished={"a-1"})
    # Both are kept; the newest one answers to the name.
    newest = state.registry.find("a")
    assert newest is not None and torch.equal(newest.delta, learned.delta)


def test_one_bad_prompt_does_not_cost_its_neighbours() -> None:
    state = make_state()
    bad = [1, VOCABULARY + 3, 2]
    begin(state, [arrival("bad-1", bad), arrival("good-1", TOKENS)])
    additions = step(state, ("bad-1", bad, 0), ("good-1", TOKENS, 0))
    assert additions.rows[0] == 0 and additions.rows[1] > 0
    stats = state.stats()
    assert [stats[name] for name in ("failed", "optimized", "one_token")] == [1, 1, 0]
    assert state.registry.find("bad") is None
    assert f"token {VOCABULARY + 3}" in state.failures.errors[-1]


def test_a_delta_that_is_not_finite_is_counted() -> None:
    state = make_state()
    state.linear_head.weight[3, 2] = float("inf")  # type: ignore[attr-defined]
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(state, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    stats = state.stats()
    assert [stats[x] for x in ("failed", "failed.non_finite", "optimized", "shared")] == [
        2,
        2,
        0,
        0,
    ]
    # W delta is not a number at the infinite weight, though delta is zero.
    assert not additions.biases[additions.rows].any()
    assert state.registry.find("a") is None


def test_rows_that_never_came_fail_the_request_alone() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(state, ("a-1", TOKENS[4:], 4), ("b-1", TOKENS, 0))
    assert state.stats()["failed"] == 1
    assert "never came" in state.failures.errors[-1]
    assert additions.rows[0] == 0 and additions.rows[1] > 0


def test_counting_bypassed_and_unresolved_requests_once() -> None:
    state = make_state(steps=2)
    new = [arrival("a-1", TOKENS, bypassed="prompt_embeddings")]
    unresolved = arrival("u-1", TOKENS)
    unresolved.sampling_params.extra_args = None
    begin(state, [*new, unresolved])
    begin(state, preempted={"a-1"})
    begin(state, [*new, unresolved])
    stats = state.stats()
    assert (stats["bypassed.prompt_embeddings"], stats["bypassed.unresolved"]) == (1, 1)
    assert step(state, ("a-1", TOKENS, 0), ("u-1", TOKENS, 0)) is None
    begin(state, finished={"a-1", "u-1"})
    assert not state.registry.requests


@pytest.mark.parametrize(("steps", "bypassed"), [(0, None), (2, "beam_search")])
def test_a_further_step_of_a_search_counts_as_nothing(steps: int, bypassed: str | None) -> None:
    state = make_state()
    first = arrival("a-1", TOKENS, steps, bypassed)
    begin(state, [first, arrival("a-2", TOKENS, steps, bypassed, counted=False)])
    stats = state.stats()
    assert stats["bypassed"] + stats["plain"] == 1
    assert stats["optimized"] == stats["requests"] == 0
    assert step(state, ("a-1", TOKENS, 0), ("a-2", TOKENS, 0)) is None
    begin(state, finished={"a-1", "a-2"})
    assert not state.registry.requests


def test_a_shared_delta_fades_for_each_request_by_itself() -> None:
    state = make_state()
    own: dict[str, dict[str, Any]] = {
        "whole": {},
        "window": {"window": 2},
        "half": {"half_life": 0.5},
        "both": {"window": 3, "half_life": 2.0},
        "tiny": {"half_life": 5e-324},
    }
    begin(state, [arrival(name, TOKENS, **settings) for name, settings in own.items()])
    (row,) = set(step(state, *((name, TOKENS, 0) for name in own)).rows.tolist())
    assert row and len(state.table) == 1
    assert state.statistics.counters["optimized"] == 1 and state.statistics.counters["shared"] == 4

    def left(t: int) -> tuple[list[float], list[bool]]:
        additions = step(state, *((name, [1], len(TOKENS) - 1 + t) for name in own))
        return additions.factors.tolist(), (additions.rows == row).tolist()

    assert left(0) == ([1.0, 1.0, 1.0, 1.0, 1.0], [True] * 5)
    factors, there = left(2)
    assert factors == [1.0, 0.0, 0.0625, 0.5, 0.0]
    # Rows of which nothing is left keep every bit.
    assert there == [True, False, True, True, False]
    assert left(3)[0] == pytest.approx([1.0, 0.0, 1 / 64, 0.0, 0.0])
    # A preempted request computes its prompt again, from its beginning.
    assert left(-5) == ([1.0] * 5, [True] * 5)
    # Without the others nothing is multiplied.
    assert step(state, ("whole", [1], len(TOKENS))).factors is None


@pytest.mark.parametrize("keep", [0, 2])
def test_how_many_deltas_stay_readable(keep: int) -> None:
    state = make_state(keep_deltas=keep)
    for name in "abc":
        begin(state, [arrival(f"{name}-1", TOKENS)], finished={"a-1", "b-1", "c-1"})
        step(state, (f"{name}-1", TOKENS, 0))
        assert (state.registry.find(name) is None) == (keep == 0)
    begin(state, finished={"c-1"})
    assert [state.registry.find(name) is not None for name in "abc"] == [
        False,
        keep == 2,
        keep == 2,
    ]
    assert not state.registry.requests and len(state.table) == 0
    kept = [learned.delta.untyped_storage().nbytes() for _, learned in state.registry.kept.values()]
    assert kept == [SIZE * 4] * keep


def cached_step(state: RunnerState, *parts: tuple[str, list[int], int, list[int]]) -> Any:
    """As ``step``, with rows that can be read back: each part also has its whole prompt."""
    sizes = [len(tokens) for _, tokens, _, _ in parts]
    view = BatchView(
        req_ids=[req_id for req_id, _, _, _ in parts],
        starts=np.array([start for _, _, start, _ in parts]),
        query_start=np.cumsum([0, *sizes]),
        slots=np.arange(len(parts)),
        row_slots=torch.arange(len(parts)),
        num_slots=len(parts),
        positions=lambda: torch.tensor([start + len(own) - 1 for _, own, start, _ in parts]),
        read=lambda i, start, stop: hidden_of(parts[i][3])[start:stop],
    )
    state.step.stage(torch.cat([hidden_of(tokens) for _, tokens, _, _ in parts]), lambda: view)
    return state.step.take()


def test_rows_in_the_cache_are_read_and_counted() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    # Three rows were hit; the rest comes in two steps, with a preemption between.
    cached_step(state, ("a-1", TOKENS[3:5], 3, TOKENS))
    begin(state, preempted={"a-1"})
    cached_step(state, ("a-1", TOKENS[4:6], 4, TOKENS))
    cached_step(state, ("a-1", TOKENS[6:], 6, TOKENS))
    learned = state.registry.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    stats = state.stats()
    assert (stats["hidden_rows_cached"], stats["hidden_rows_computed"]) == (3 + 4, 2 + 4)
    assert stats["pending_device_bytes"] == 0


def test_equal_prompts_share_a_delta_and_its_row() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(state, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    begin(state, [arrival("c-1", TOKENS)], finished={"a-1"})
    later = step(state, ("b-1", [7], len(TOKENS)), ("c-1", TOKENS, 0))
    assert len({*additions.rows.tolist(), *later.rows.tolist()}) == 1
    assert len(state.table) == 1
    assert [state.stats()[name] for name in ("optimized", "shared")] == [1, 2]
    begin(state, finished={"b-1", "c-1"})
    assert len(state.table) == 0


def test_what_must_not_be_shared() -> None:
    state = make_state(capacity=8)
    image, other, later = (
        [SimpleNamespace(identifier=name, mm_position=SimpleNamespace(offset=offset))]
        for name, offset in (("one", 1), ("other", 1), ("one", 2))
    )
    new = [
        arrival("a-1", TOKENS),
        arrival("b-1", TOKENS, cache_salt="x"),
        arrival("c-1", TOKENS, cache_salt="y"),
        arrival("d-1", TOKENS, steps=3),
        arrival("e-1", TOKENS, mm_features=image),
        arrival("f-1", TOKENS, mm_features=other),
        arrival("g-1", TOKENS, mm_features=later),
        arrival("h-1", TOKENS, mm_features=image),
    ]
    begin(state, new)
    step(state, *((r.req_id, TOKENS, 0) for r in new))
    # The last one shares the fifth's.
    assert [state.stats()[name] for name in ("optimized", "shared")] == [7, 1]
    off = make_state(delta_cache_mb=0)
    begin(off, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    step(off, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    assert [off.stats()[name] for name in ("optimized", "shared")] == [2, 0]


def test_an_overlapping_request_shares_what_the_cache_has_dropped() -> None:
    state = make_state()
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    state.sharing.cache.clear()
    begin(state, [arrival("b-1", TOKENS)])
    step(state, ("a-1", [7], len(TOKENS)), ("b-1", TOKENS, 0))
    assert [state.stats()[name] for name in ("optimized", "shared")] == [1, 1]
    state.sharing.forget()
    begin(state, [arrival("c-1", TOKENS)])
    step(state, ("a-1", [7], len(TOKENS) + 1), ("c-1", TOKENS, 0))
    assert state.stats()["optimized"] == 2
    assert len(state.table) == 2


@pytest.mark.parametrize("replacer", ["slot", "plain", "bypassed", "unknown"])
def test_an_adapter_that_is_replaced_in_place_ends_sharing(replacer: str) -> None:
    state = make_state()
    first, second = (
        SimpleNamespace(lora_name="x", lora_int_id=1, lora_path="/x", load_inplace=again)
        for again in (False, True)
    )
    begin(state, [arrival("a-1", TOKENS, lora_request=first)])
    step(state, ("a-1", TOKENS, 0))
    new = arrival(
        "b-1",
        TOKENS,
        steps=0 if replacer == "plain" else 2,
        bypassed="beam_search" if replacer == "bypassed" else None,
        lora_request=second,
    )
    if replacer == "unknown":
        new.sampling_params.extra_args = {}
    begin(state, [new])
    step(state, ("b-1", TOKENS, 0))
    for name in ("c-1", "d-1"):
        begin(state, [arrival(name, TOKENS, lora_request=first)])
        step(state, (name, TOKENS, 0))
    learned = 3 if replacer == "slot" else 2
    assert [state.stats()[name] for name in ("optimized", "shared")] == [learned, 1]


def test_a_prompt_across_a_change_of_weights_is_shared_with_nobody() -> None:
    state = make_state()
    # The second one came before it too, but nothing of it was computed.
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    step(state, ("a-1", TOKENS[:3], 0))
    state.sharing.forget()
    step(state, ("a-1", TOKENS[3:], 3), ("b-1", TOKENS, 0))
    begin(state, [arrival("c-1", TOKENS)])
    step(state, ("c-1", TOKENS, 0))
    assert [state.stats()[name] for name in ("optimized", "shared")] == [3, 0]


def test_those_who_share_share_a_failure() -> None:
    state = make_state()
    bad = [1, VOCABULARY + 3, 2]
    begin(state, [arrival("a-1", bad), arrival("b-1", bad)])
    assert step(state, ("a-1", bad, 0), ("b-1", bad, 0)) is None
    assert [state.stats()[name] for name in ("failed", "optimized", "shared")] == [2, 0, 0]
    assert not len(state.sharing.cache)


def test_copies_out_of_the_cache_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(pending_mb=0)
    groups: list[int] = []
    learn = state.learner._learn_group

    def watched(group: Any) -> None:
        groups.append(len(group))
        learn(group)

    monkeypatch.setattr(state.learner, "_learn_group", watched)
    prompts = {f"{i}-1": [i, *TOKENS] for i in range(3)}
    begin(state, [arrival(name, tokens) for name, tokens in prompts.items()])
    cached_step(state, *((name, t[4:], 4, t) for name, t in prompts.items()))
    assert groups == [1, 1, 1]
    assert state.stats()["optimized"] == 3


def test_what_was_not_finite_is_learned_anew() -> None:
    state = make_state()
    weight = state.linear_head.weight  # type: ignore[attr-defined]
    sound = weight[3, 2].item()
    weight[3, 2] = float("inf")
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    weight[3, 2] = sound
    begin(state, [arrival("b-1", TOKENS)], finished={"a-1"})
    step(state, ("b-1", TOKENS, 0))
    found = state.registry.find("b")
    assert found is not None and bool(found.finite)
    torch.testing.assert_close(found.delta, expected_delta(TOKENS), rtol=0, atol=2e-4)
    assert state.stats()["shared"] == 0


def test_a_row_that_was_not_filled_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state()
    begin(state, [arrival("a-1", [7, 8, 9])])
    step(state, ("a-1", [7, 8, 9], 0))
    begin(state, [arrival("b-1", TOKENS)], finished={"a-1"})

    def fail(*args: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(state.table, "fill", fail)
        assert step(state, ("b-1", TOKENS, 0)).rows.tolist() == [0]
    assert state.stats()["failed.table"] == 1
    begin(state, [arrival("c-1", TOKENS)])
    additions = step(state, ("c-1", TOKENS, 0))
    expected = FixedHead().weight @ expected_delta(TOKENS)
    torch.testing.assert_close(additions.biases[additions.rows[0]], expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_delta_has_an_effect_on_all_ranks_or_on_none(vanishes: bool) -> None:
    """The last of eight ranks has no columns, and so no part of W delta."""
    group, whole = Group(8), Model()
    settings: dict[str, Any] = {"lr": 0.0} if vanishes else {}

    def work(rank: int) -> tuple[Any, Any]:
        ranks = ThreadRanks(group, rank)
        with torch.inference_mode():
            head = LinearHead(sharded(whole, ranks, False), SIZE, torch.float32, ranks)
            config = SlotConfig(workspace_mb=1, keep_deltas=1, check_ranks=True)
            state = RunnerState(config, head, 4, torch.device("cpu"))
            begin(state, [arrival("a-1", TOKENS, **settings)])
            additions = step(state, ("a-1", TOKENS, 0))
            return additions.rows.tolist(), state.token_shifts("a")

    results = group.run(work)
    assert not isinstance(results[0], Exception), results[0]
    prompt = Prompt(hidden_of(TOKENS), torch.tensor(TOKENS), SlotParams(steps=2))
    head = Head(whole.embedding.weight.detach()[:VOCABULARY])
    expected = head.weight.double() @ oracle(head, prompt).delta
    for rows, shifts in results:
        assert (rows == [0]) == vanishes
        torch.testing.assert_close(shifts, expected.float() * (not vanishes), rtol=1e-3, atol=2e-3)


def test_a_request_that_another_version_admitted() -> None:
    """As on another node of a data-parallel engine."""
    state = make_state()
    begin(state, [arrival("a-1", TOKENS, version="9.9"), arrival("b-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    assert state.registry.find("a") is None and state.registry.find("b") is not None
    assert state.stats()["failed.arrival"] == 1
    (error,) = state.failures.errors
    assert "slot_vllm 9.9 admitted the request, but on " in error
    assert f"slot_vllm {__version__} is installed; every node needs the same version" in error
