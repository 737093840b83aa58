"""Ranks of a vocabulary-sharded head, each in a thread, against the float64 oracle of the whole."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slot_vllm.bench.published import published_delta
from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, Prompt, optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.shard import OtherRankFailed, Shard
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.optim.test_optimize import make_head, make_prompt, tolerance

MIB = 1 << 20
# A rank that waits for ever is a test that fails.
TIMEOUT = 60.0


class Group:
    """Collectives among threads: every call is one of all ranks, in the same order."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.shapes: list[tuple[int, ...]] = []
        self._barrier = threading.Barrier(ranks, timeout=TIMEOUT)
        self._given: list[Any] = [None] * ranks

    def exchange(self, rank: int, own: Any) -> list[Any]:
        self._given[rank] = own
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given

    def gather(self, rank: int, own: Tensor) -> Tensor:
        given = self.exchange(rank, own.clone())
        assert {tuple(t.shape) for t in given} == {tuple(own.shape)}
        if rank == 0:
            self.shapes.append(tuple(own.shape))
        return torch.stack(given)

    @property
    def bytes_given(self) -> int:
        """By one rank, float32; it receives as many from each of the others."""
        return 4 * sum(map(prod, self.shapes))

    def shard(self, rank: int, bounds: Sequence[int]) -> Shard:
        return Shard(
            bounds[rank],
            max(b - a for a, b in pairwise(bounds)),
            lambda own: self.gather(rank, own),
            lambda flag: any(self.exchange(rank, flag)),
        )

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What ``work(rank)`` returns or raises, per rank."""
        results: list[Any] = [None] * self.ranks

        def target(rank: int) -> None:
            try:
                results[rank] = work(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=target, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def part_of(head: Head, begin: int, end: int) -> Head:
    bias = None if head.bias is None else head.bias[begin:end]
    return Head(head.weight[begin:end], bias, head.soft_cap, head.scale)


def on_ranks(
    group: Group,
    head: Head,
    prompts: list[Prompt],
    bounds: Sequence[int],
    extra_bytes: int,
    final_loss: bool = True,
    with_last_kl: bool = False,
) -> list[Any]:
    """Per rank, the list of what it learned or its exception."""

    def work(rank: int) -> list[Learned]:
        own, shard = part_of(head, *bounds[rank : rank + 2]), group.shard(rank, bounds)
        workspace = Workspace(smallest_workspace(own, shard) + extra_bytes)
        memory = workspace._bytes.untyped_storage()
        before = (memory.data_ptr(), memory.nbytes())
        learned = optimize(
            own, prompts, workspace, final_loss, shard=shard, with_last_kl=with_last_kl
        )
        # torch resizes an `out` that does not fit, and with it the storage behind it.
        assert (memory.data_ptr(), memory.nbytes()) == before
        return learned

    return group.run(work)


def assert_ranks_equal_the_oracle(
    head: Head, prompts: list[Prompt], bounds: Sequence[int], extra_bytes: int
) -> None:
    results = on_ranks(Group(len(bounds) - 1), head, prompts, bounds, extra_bytes)
    for i, prompt in enumerate(prompts):
        expected = oracle(head, prompt)
        for learned in results:
            assert not isinstance(learned, Exception), learned
            error = (learned[i].delta.double() - expected.delta).abs().max().item()
            assert error <= tolerance(prompt.params), (prompt.rows, prompt.params, error)
            assert torch.equal(learned[i].delta, results[0][i].delta)
            torch.testing.assert_close(
                learned[i].losses.double(), expected.losses, rtol=2e-4, atol=2e-4
            )


VOCABULARY = 211


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(0, VOCABULARY), min_size=1, max_size=4).map(sorted),
    requests=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, 17, 64, 150]),
            st.integers(0, 6),
            st.sampled_from([0.001, 0.1, 1.0]),
        ),
        min_size=1,
        max_size=5,
    ),
    soft_cap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.5]),
    bias=st.booleans(),
    extra_bytes=st.sampled_from([0, 5_000, 200_000, 1 << 22]),
)
def test_any_bounds(
    cuts: list[int],
    requests: list[tuple[int, int, float]],
    soft_cap: float | None,
    scale: float,
    bias: bool,
    extra_bytes: int,
) -> None:
    head = make_head(VOCABULARY, 32, soft_cap, scale, bias)
    prompts = [
        make_prompt(head, n, SlotParams(steps=steps, lr=lr), seed=i)
        for i, (n, steps, lr) in enumerate(requests)
    ]
    assert_ranks_equal_the_oracle(head, prompts, [0, *cuts, VOCABULARY], extra_bytes)


@pytest.mark.parametrize("extra_bytes", [0, MIB])
def test_options_mixed_in_one_batch(extra_bytes: int) -> None:
    head = make_head(VOCABULARY, 32)
    options: tuple[dict[str, Any], ...] = (
        {},
        {"loss_tokens": 7},
        {"loss_tokens": "user"},
        {"lr": 1.0},
        {"preset": "paper-vllm", "loss_tokens": 100},
    )
    prompts = [
        replace(
            make_prompt(head, n, SlotParams(**{"steps": steps, **own}), seed=n),
            counts=[i % 3 == 0 for i in range(n)],
        )
        for n, steps, own in zip((30, 64, 17, 2, 150), (5, 3, 6, 5, 1), options, strict=True)
    ]
    assert_ranks_equal_the_oracle(head, prompts, [0, 100, VOCABULARY], extra_bytes)


def test_tokens_that_count_are_picked_by_all_ranks_or_none() -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    group = Group(2)
    good = make_prompt(head, 9, SlotParams(loss_tokens="text"))

    def work(rank: int) -> list[Learned]:
        prompt = replace(good, counts=[True] * 9) if rank else good
        own, shard = part_of(head, *bounds[rank : rank + 2]), group.shard(rank, bounds)
        return optimize(own, [prompt], Workspace(MIB), shard=shard)

    failed, well = group.run(work)
    assert isinstance(failed, ValueError) and isinstance(well, OtherRankFailed)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("bounds", [[0, 64, 128, 192, 211, 211, 211, 211, 211], [0, 211, 211]])
def test_ranks_with_nothing_but_padding(bounds: list[int], soft_cap: float | None) -> None:
    head = make_head(VOCABULARY, 32, soft_cap, bias=True)
    prompts = [make_prompt(head, n, SlotParams(), seed=n) for n in (2, 40)]
    assert_ranks_equal_the_oracle(head, prompts, bounds, MIB)


def test_in_bf16_all_ranks_have_the_bits_of_one_delta() -> None:
    head = make_head(1000, 128, dtype=torch.bfloat16)
    prompt = make_prompt(head, 200, SlotParams(lr=0.01))
    first, *others = on_ranks(Group(3), head, [prompt], [0, 384, 768, 1000], MIB)
    expected = oracle(head, prompt).delta
    error = (first[0].delta.double() - expected).abs().mean()
    assert error <= (published_delta(head, prompt).double() - expected).abs().mean()
    assert all(torch.equal(first[0].delta, other[0].delta) for other in others)


@pytest.mark.parametrize("extra_bytes", [0, MIB])
@pytest.mark.parametrize(
    ("place", "at_call"),
    [("__init__", 1), ("sums", 1), ("sums", 3), ("_add_part", 2), ("_add_part", 4)],
)
def test_a_rank_that_fails_alone_fails_all_and_none_waits(
    place: str, at_call: int, extra_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    prompts = [make_prompt(head, n, SlotParams(steps=4), seed=n) for n in (9, 30)]
    original = getattr(TwoPassForm, place)
    local = threading.local()

    def injected(self: TwoPassForm, *args: Any, **kwargs: Any) -> Any:
        if self_rank(args, kwargs, self) == 1:
            local.calls = getattr(local, "calls", 0) + 1
            if local.calls == at_call:
                raise RuntimeError("injected")
        return original(self, *args, **kwargs)

    def self_rank(args: Any, kwargs: Any, form: TwoPassForm) -> int:
        shard = form._shard if place != "__init__" else args[3]
        assert isinstance(shard, Shard)
        return int(shard.first_token > 0)

    with monkeypatch.context() as patch:
        patch.setattr(TwoPassForm, place, injected)
        group = Group(2)
        well, ill = on_ranks(group, head, prompts, bounds, extra_bytes)
    assert isinstance(well, OtherRankFailed)
    assert isinstance(ill, RuntimeError) and str(ill) == "injected"
    # And the group is as good as before.
    again = on_ranks(group, head, prompts, bounds, extra_bytes)
    assert torch.equal(again[0][0].delta, again[1][0].delta)


def test_two_gathers_per_step_of_the_size_that_is_said() -> None:
    head, rows, steps = make_head(VOCABULARY, 32), 40, 5
    prompt = make_prompt(head, rows + 1, SlotParams(steps=steps))
    group = Group(2)
    on_ranks(group, head, [prompt], [0, 128, VOCABULARY], MIB, final_loss=False)
    assert group.shapes == [(2, rows), (1, 32)] * steps
    assert group.bytes_given == steps * 4 * (2 * rows + 32)
