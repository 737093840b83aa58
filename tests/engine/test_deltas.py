"""The state of one runner, driven without an engine."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from slot_vllm import __version__
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.deltas import Deltas
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotConfig, SlotParams
from tests.engine.test_linear_head import Model, ThreadRanks, sharded
from tests.optim.test_shard import Group

SIZE, VOCABULARY = 16, 50


class FixedHead:
    vocabulary = VOCABULARY

    def __init__(self) -> None:
        self.weight = torch.randn(VOCABULARY, SIZE, generator=torch.Generator().manual_seed(0))

    def head(self) -> Head:
        return Head(self.weight)

    def describe(self) -> str:
        return "fixed"


def make_deltas(capacity: int = 4, **options: Any) -> Deltas:
    config = SlotConfig(**{"workspace_mb": 1, "keep_deltas": 4, **options})
    return Deltas(config, FixedHead(), capacity, torch.device("cpu"))  # type: ignore[arg-type]


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


def begin(deltas: Deltas, new: Any = (), finished: Any = (), preempted: Any = None) -> None:
    output = SimpleNamespace(
        scheduled_new_reqs=list(new),
        finished_req_ids=set(finished),
        preempted_req_ids=preempted,
        num_scheduled_tokens=dict.fromkeys((n.req_id for n in new), 1),
    )
    deltas.begin_step(output)


def hidden_of(tokens: list[int]) -> torch.Tensor:
    table = torch.randn(VOCABULARY * 2, SIZE, generator=torch.Generator().manual_seed(1))
    return table[tokens]


def step(deltas: Deltas, *parts: tuple[str, list[int], int]) -> Any:
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
    deltas.stage(torch.cat([hidden_of(tokens) for _, tokens, _ in parts]), lambda: view)
    return deltas.take()


def expected_delta(tokens: list[int], steps: int = 2) -> torch.Tensor:
    prompt = Prompt(hidden_of(tokens), torch.tensor(tokens), SlotParams(steps=steps))
    return oracle(FixedHead().head(), prompt).delta.float()


TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_prompt_in_parts() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    assert step(deltas, ("a-1", TOKENS[:3], 0)) is None
    assert deltas.pending.device_bytes == len(TOKENS) * SIZE * 4
    additions = step(deltas, ("a-1", TOKENS[3:], 3))
    assert deltas.pending.device_bytes == 0
    learned = deltas.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    row = additions.rows[0]
    torch.testing.assert_close(additions.biases[row], FixedHead().weight @ learned.delta)
    # Generated tokens are applied to, never learned from.
    assert step(deltas, ("a-1", [7], len(TOKENS))) is not None
    assert deltas.stats()["optimized"] == 1


def test_preempted_within_its_prompt_it_starts_again() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS[:5], 0))
    begin(deltas, preempted={"a-1"})
    assert deltas.pending.device_bytes == 0
    # The V2 runner gets it as a new request.
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS[:2], 0))
    step(deltas, ("a-1", TOKENS[2:], 2))
    learned = deltas.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    assert deltas.pending.device_bytes == 0


def test_a_resumed_request_keeps_its_delta_and_gets_a_row_again() -> None:
    deltas = make_deltas(capacity=1)
    begin(deltas, [arrival("a-1", TOKENS)])
    first = step(deltas, ("a-1", TOKENS, 0))
    bias = first.biases[first.rows[0]].clone()
    begin(deltas, [arrival("b-1", TOKENS[::-1])], preempted={"a-1"})
    step(deltas, ("b-1", TOKENS[::-1], 0))
    assert deltas.table.row(deltas.requests["a-1"].row) is None
    begin(deltas, [arrival("a-1", TOKENS)], preempted={"b-1"})
    again = step(deltas, ("a-1", [*TOKENS, 7], 0))
    assert torch.equal(again.biases[again.rows[0]], bias)
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [2, 0]


def test_generated_tokens_in_the_step_of_a_prompt_are_none_of_it() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", [*TOKENS, 7], 0))
    learned = deltas.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)


def test_an_id_used_again_after_an_abort_is_another_request() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0))
    begin(deltas, [arrival("a-1", TOKENS[:4])], finished={"a-1"})
    step(deltas, ("a-1", TOKENS[:4], 0))
    learned = deltas.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS[:4]), rtol=1e-4, atol=2e-5)
    begin(deltas, finished={"a-1"})
    # Both are kept; the newest one answers to the name.
    newest = deltas.find("a")
    assert newest is not None and torch.equal(newest.delta, learned.delta)


def test_one_bad_prompt_does_not_cost_its_neighbours() -> None:
    deltas = make_deltas()
    bad = [1, VOCABULARY + 3, 2]
    begin(deltas, [arrival("bad-1", bad), arrival("good-1", TOKENS)])
    additions = step(deltas, ("bad-1", bad, 0), ("good-1", TOKENS, 0))
    assert additions.rows[0] == 0 and additions.rows[1] > 0
    stats = deltas.stats()
    assert [stats[name] for name in ("failed", "optimized", "one_token")] == [1, 1, 0]
    assert deltas.find("bad") is None
    assert f"token {VOCABULARY + 3}" in deltas.errors[-1]


def test_a_delta_that_is_not_finite_is_counted() -> None:
    deltas = make_deltas()
    deltas.linear_head.weight[3, 2] = float("inf")  # type: ignore[attr-defined]
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(deltas, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    stats = deltas.stats()
    assert [stats[x] for x in ("failed", "failed.non_finite", "optimized", "shared")] == [
        2,
        2,
        0,
        0,
    ]
    # W delta is not a number at the infinite weight, though delta is zero.
    assert not additions.biases[additions.rows].any()
    assert deltas.find("a") is None


def test_rows_that_never_came_fail_the_request_alone() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(deltas, ("a-1", TOKENS[4:], 4), ("b-1", TOKENS, 0))
    assert deltas.stats()["failed"] == 1
    assert "never came" in deltas.errors[-1]
    assert additions.rows[0] == 0 and additions.rows[1] > 0


def test_counting_bypassed_and_unresolved_requests_once() -> None:
    deltas = make_deltas(steps=2)
    new = [arrival("a-1", TOKENS, bypassed="multimodal")]
    unresolved = arrival("u-1", TOKENS)
    unresolved.sampling_params.extra_args = None
    begin(deltas, [*new, unresolved])
    begin(deltas, preempted={"a-1"})
    begin(deltas, [*new, unresolved])
    stats = deltas.stats()
    assert (stats["bypassed.multimodal"], stats["bypassed.unresolved"]) == (1, 1)
    assert step(deltas, ("a-1", TOKENS, 0), ("u-1", TOKENS, 0)) is None
    begin(deltas, finished={"a-1", "u-1"})
    assert not deltas.bypassed


@pytest.mark.parametrize(("steps", "bypassed"), [(0, None), (2, "beam_search")])
def test_a_further_step_of_a_search_counts_as_nothing(steps: int, bypassed: str | None) -> None:
    deltas = make_deltas()
    first = arrival("a-1", TOKENS, steps, bypassed)
    begin(deltas, [first, arrival("a-2", TOKENS, steps, bypassed, counted=False)])
    stats = deltas.stats()
    assert stats["bypassed"] + stats["plain"] == 1
    assert stats["optimized"] == stats["requests"] == 0
    assert step(deltas, ("a-1", TOKENS, 0), ("a-2", TOKENS, 0)) is None
    begin(deltas, finished={"a-1", "a-2"})
    assert not deltas.bypassed and not deltas.plain


def test_a_shared_delta_fades_for_each_request_by_itself() -> None:
    deltas = make_deltas()
    own: dict[str, dict[str, Any]] = {
        "whole": {},
        "window": {"window": 2},
        "half": {"half_life": 0.5},
        "both": {"window": 3, "half_life": 2.0},
        "tiny": {"half_life": 5e-324},
    }
    begin(deltas, [arrival(name, TOKENS, **settings) for name, settings in own.items()])
    (row,) = set(step(deltas, *((name, TOKENS, 0) for name in own)).rows.tolist())
    assert row and len(deltas.table) == 1
    assert deltas.counters["optimized"] == 1 and deltas.counters["shared"] == 4

    def left(t: int) -> tuple[list[float], list[bool]]:
        additions = step(deltas, *((name, [1], len(TOKENS) - 1 + t) for name in own))
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
    assert step(deltas, ("whole", [1], len(TOKENS))).factors is None


@pytest.mark.parametrize("keep", [0, 2])
def test_how_many_deltas_stay_readable(keep: int) -> None:
    deltas = make_deltas(keep_deltas=keep)
    for name in "abc":
        begin(deltas, [arrival(f"{name}-1", TOKENS)], finished={"a-1", "b-1", "c-1"})
        step(deltas, (f"{name}-1", TOKENS, 0))
        assert (deltas.find(name) is None) == (keep == 0)
    begin(deltas, finished={"c-1"})
    assert [deltas.find(name) is not None for name in "abc"] == [False, keep == 2, keep == 2]
    assert not deltas.requests and len(deltas.table) == 0
    kept = [learned.delta.untyped_storage().nbytes() for _, learned in deltas.kept.values()]
    assert kept == [SIZE * 4] * keep


def cached_step(deltas: Deltas, *parts: tuple[str, list[int], int, list[int]]) -> Any:
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
    deltas.stage(torch.cat([hidden_of(tokens) for _, tokens, _, _ in parts]), lambda: view)
    return deltas.take()


def test_rows_in_the_cache_are_read_and_counted() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    # Three rows were hit; the rest comes in two steps, with a preemption between.
    cached_step(deltas, ("a-1", TOKENS[3:5], 3, TOKENS))
    begin(deltas, preempted={"a-1"})
    cached_step(deltas, ("a-1", TOKENS[4:6], 4, TOKENS))
    cached_step(deltas, ("a-1", TOKENS[6:], 6, TOKENS))
    learned = deltas.find("a")
    assert learned is not None
    torch.testing.assert_close(learned.delta, expected_delta(TOKENS), rtol=1e-4, atol=2e-5)
    stats = deltas.stats()
    assert (stats["hidden_rows_cached"], stats["hidden_rows_computed"]) == (3 + 4, 2 + 4)
    assert stats["pending_device_bytes"] == 0


def test_equal_prompts_share_a_delta_and_its_row() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    additions = step(deltas, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    begin(deltas, [arrival("c-1", TOKENS)], finished={"a-1"})
    later = step(deltas, ("b-1", [7], len(TOKENS)), ("c-1", TOKENS, 0))
    assert len({*additions.rows.tolist(), *later.rows.tolist()}) == 1
    assert len(deltas.table) == 1
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [1, 2]
    begin(deltas, finished={"b-1", "c-1"})
    assert len(deltas.table) == 0


def test_what_must_not_be_shared() -> None:
    deltas = make_deltas(capacity=8)
    image = [SimpleNamespace(identifier="image")]
    new = [
        arrival("a-1", TOKENS),
        arrival("b-1", TOKENS, cache_salt="x"),
        arrival("c-1", TOKENS, cache_salt="y"),
        arrival("d-1", TOKENS, steps=3),
        arrival("e-1", TOKENS, mm_features=image),
        arrival("f-1", TOKENS, mm_features=image),
    ]
    begin(deltas, new)
    step(deltas, *((r.req_id, TOKENS, 0) for r in new))
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [6, 0]
    off = make_deltas(delta_cache_mb=0)
    begin(off, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    step(off, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    assert [off.stats()[name] for name in ("optimized", "shared")] == [2, 0]


def test_an_overlapping_request_shares_what_the_cache_has_dropped() -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0))
    deltas.shared.clear()
    begin(deltas, [arrival("b-1", TOKENS)])
    step(deltas, ("a-1", [7], len(TOKENS)), ("b-1", TOKENS, 0))
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [1, 1]
    deltas.forget_shared()
    begin(deltas, [arrival("c-1", TOKENS)])
    step(deltas, ("a-1", [7], len(TOKENS) + 1), ("c-1", TOKENS, 0))
    assert deltas.stats()["optimized"] == 2
    assert len(deltas.table) == 2


@pytest.mark.parametrize("replacer", ["slot", "plain", "bypassed", "unknown"])
def test_an_adapter_that_is_replaced_in_place_ends_sharing(replacer: str) -> None:
    deltas = make_deltas()
    first, second = (
        SimpleNamespace(lora_name="x", lora_int_id=1, lora_path="/x", load_inplace=again)
        for again in (False, True)
    )
    begin(deltas, [arrival("a-1", TOKENS, lora_request=first)])
    step(deltas, ("a-1", TOKENS, 0))
    new = arrival(
        "b-1",
        TOKENS,
        steps=0 if replacer == "plain" else 2,
        bypassed="beam_search" if replacer == "bypassed" else None,
        lora_request=second,
    )
    if replacer == "unknown":
        new.sampling_params.extra_args = {}
    begin(deltas, [new])
    step(deltas, ("b-1", TOKENS, 0))
    for name in ("c-1", "d-1"):
        begin(deltas, [arrival(name, TOKENS, lora_request=first)])
        step(deltas, (name, TOKENS, 0))
    learned = 3 if replacer == "slot" else 2
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [learned, 1]


def test_a_prompt_across_a_change_of_weights_is_shared_with_nobody() -> None:
    deltas = make_deltas()
    # The second one came before it too, but nothing of it was computed.
    begin(deltas, [arrival("a-1", TOKENS), arrival("b-1", TOKENS)])
    step(deltas, ("a-1", TOKENS[:3], 0))
    deltas.forget_shared()
    step(deltas, ("a-1", TOKENS[3:], 3), ("b-1", TOKENS, 0))
    begin(deltas, [arrival("c-1", TOKENS)])
    step(deltas, ("c-1", TOKENS, 0))
    assert [deltas.stats()[name] for name in ("optimized", "shared")] == [3, 0]


def test_those_who_share_share_a_failure() -> None:
    deltas = make_deltas()
    bad = [1, VOCABULARY + 3, 2]
    begin(deltas, [arrival("a-1", bad), arrival("b-1", bad)])
    assert step(deltas, ("a-1", bad, 0), ("b-1", bad, 0)) is None
    assert [deltas.stats()[name] for name in ("failed", "optimized", "shared")] == [2, 0, 0]
    assert not len(deltas.shared)


def test_copies_out_of_the_cache_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = make_deltas(pending_mb=0)
    groups: list[int] = []
    learn = deltas._learn

    def watched(group: Any) -> None:
        groups.append(len(group))
        learn(group)

    monkeypatch.setattr(deltas, "_learn", watched)
    prompts = {f"{i}-1": [i, *TOKENS] for i in range(3)}
    begin(deltas, [arrival(name, tokens) for name, tokens in prompts.items()])
    cached_step(deltas, *((name, t[4:], 4, t) for name, t in prompts.items()))
    assert groups == [1, 1, 1]
    assert deltas.stats()["optimized"] == 3


def test_what_was_not_finite_is_learned_anew() -> None:
    deltas = make_deltas()
    weight = deltas.linear_head.weight  # type: ignore[attr-defined]
    sound = weight[3, 2].item()
    weight[3, 2] = float("inf")
    begin(deltas, [arrival("a-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0))
    weight[3, 2] = sound
    begin(deltas, [arrival("b-1", TOKENS)], finished={"a-1"})
    step(deltas, ("b-1", TOKENS, 0))
    found = deltas.find("b")
    assert found is not None and bool(found.finite)
    torch.testing.assert_close(found.delta, expected_delta(TOKENS), rtol=0, atol=2e-4)
    assert deltas.stats()["shared"] == 0


def test_a_row_that_was_not_filled_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", [7, 8, 9])])
    step(deltas, ("a-1", [7, 8, 9], 0))
    begin(deltas, [arrival("b-1", TOKENS)], finished={"a-1"})

    def fail(*args: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(deltas.table, "fill", fail)
        assert step(deltas, ("b-1", TOKENS, 0)).rows.tolist() == [0]
    assert deltas.stats()["failed.table"] == 1
    begin(deltas, [arrival("c-1", TOKENS)])
    additions = step(deltas, ("c-1", TOKENS, 0))
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
            deltas = Deltas(config, head, 4, torch.device("cpu"), ranks)
            begin(deltas, [arrival("a-1", TOKENS, **settings)])
            additions = step(deltas, ("a-1", TOKENS, 0))
            return additions.rows.tolist(), deltas.token_shifts("a")

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
    deltas = make_deltas()
    begin(deltas, [arrival("a-1", TOKENS, version="9.9"), arrival("b-1", TOKENS)])
    step(deltas, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    assert deltas.find("a") is None and deltas.find("b") is not None
    assert deltas.stats()["failed.arrival"] == 1
    (error,) = deltas.errors
    assert "slot_vllm 9.9 admitted the request, but on " in error
    assert f"slot_vllm {__version__} is installed; every node needs the same version" in error
