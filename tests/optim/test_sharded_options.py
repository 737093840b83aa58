"""Every option on the ranks of a vocabulary-sharded head, each in a thread, against the oracle."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.optim import optimize as module
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import OtherRankFailed
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from tests.optim.test_optimize import MIB, make_head
from tests.optim.test_options import (
    OPTIONS,
    assert_equal,
    assert_last_kl_equal,
    drawn_prompts,
    exact_last_kl,
    name_of,
    problem,
    prompt_of,
    requests,
)
from tests.optim.test_shard import VOCABULARY, Group, on_ranks


def together(
    head: Head,
    prompts: list[Prompt],
    bounds: Sequence[int],
    extra_bytes: int = MIB,
    final_loss: bool = True,
    group: Group | None = None,
    with_last_kl: bool = False,
) -> list[Learned]:
    """What the ranks learned, which is the same bits on each."""
    group = group or Group(len(bounds) - 1)
    results = on_ranks(group, head, prompts, bounds, extra_bytes, final_loss, with_last_kl)
    for result in results:
        assert not isinstance(result, Exception), result
    learned: list[Learned] = []
    for first, *others in zip(*results, strict=True):
        for other in others:
            for name in ("delta", "losses", "finite", "last_kl"):
                one, two = getattr(first, name), getattr(other, name)
                assert (one is None and two is None) or torch.equal(one, two), name
        learned.append(first)
    return learned


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_each_option(options: dict[str, Any], cap: float | None) -> None:
    """Unequal shards, of which the last is nothing but padding."""
    head, prompts, expected = problem(name_of(options), cap)
    bounds = [0, 100, 228, head.vocabulary, head.vocabulary]
    for prompt, learned, exact in zip(
        prompts, together(head, prompts, bounds, with_last_kl=True), expected, strict=True
    ):
        assert_equal(head, prompt, learned, exact)
        assert_last_kl_equal(learned, exact)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    cuts=st.lists(st.integers(0, 129), min_size=1, max_size=3).map(sorted),
    requests=st.lists(requests, min_size=1, max_size=5),
    soft_cap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.5]),
    extra_bytes=st.sampled_from([0, 20_000, 1 << 22]),
)
def test_any_mixture_in_any_workspace(
    cuts: list[int],
    requests: list[dict[str, Any]],
    soft_cap: float | None,
    scale: float,
    extra_bytes: int,
) -> None:
    head = make_head(vocabulary=129, hidden=16, soft_cap=soft_cap, scale=scale)
    prompts = drawn_prompts(head, requests)
    learned = together(head, prompts, [0, *cuts, 129], extra_bytes)
    for prompt, result in zip(prompts, learned, strict=True):
        assert_equal(head, prompt, result, oracle(head, prompt))


@pytest.mark.parametrize("bounds", [[0, 307], [0, 307, 307], [0, 2, 150, 307]])
def test_a_small_divergence_keeps_its_digits(bounds: list[int]) -> None:
    head = make_head(hidden=32)
    for lr in (1e-4, 1e-2, 3.0):
        prompts = [prompt_of(head, 60, seed, lr=lr, steps=1) for seed in range(12)]
        for prompt, learned in zip(
            prompts, together(head, prompts, bounds, with_last_kl=True), strict=True
        ):
            assert learned.last_kl is not None
            expected = exact_last_kl(head, prompt, learned)
            torch.testing.assert_close(learned.last_kl.double(), expected, rtol=1e-3, atol=0)


MIXED: tuple[dict[str, Any], ...] = (
    {"preset": "paper-vllm"},
    {"loss_tokens": 5},
    {"loss_tokens": "text"},
    {},
)


@pytest.mark.parametrize("extra_bytes", [0, MIB])
@pytest.mark.parametrize(
    ("owner", "place", "at_call"),
    [(TwoPassForm, "sums", 4), (module, "last_kl", 1)],
)
def test_a_rank_that_fails_alone_fails_all_and_none_waits(
    owner: Any, place: str, at_call: int, extra_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    prompts = [
        prompt_of(head, n, seed=n, steps=3, **options)
        for n, options in zip((30, 9, 17, 40), MIXED, strict=True)
    ]
    original = getattr(owner, place)
    local = threading.local()

    def injected(*args: Any, **kwargs: Any) -> Any:
        shard = args[-1] if place == "last_kl" else args[0]._shard
        if shard.first_token:
            local.calls = getattr(local, "calls", 0) + 1
            if local.calls == at_call:
                raise RuntimeError("injected")
        return original(*args, **kwargs)

    group = Group(2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, injected)
        well, ill = on_ranks(group, head, prompts, bounds, extra_bytes, with_last_kl=True)
    assert isinstance(well, OtherRankFailed)
    assert isinstance(ill, RuntimeError) and str(ill) == "injected"
    # And the group is as good as before.
    together(head, prompts, bounds, extra_bytes, group=group)


def test_rows_are_split_by_all_ranks_or_none() -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    prompt, group = prompt_of(head, 30, loss_tokens=9), Group(2)

    def work(rank: int) -> list[Learned]:
        own = replace(prompt, tokens=prompt.tokens[: 30 - 20 * rank])
        weight = head.weight[bounds[rank] : bounds[rank + 1]]
        return optimize(Head(weight), [own], Workspace(MIB), shard=group.shard(rank, bounds))

    well, ill = group.run(work)
    assert isinstance(ill, IndexError) and isinstance(well, OtherRankFailed)


ROWS, STEPS, SIZE = 40, 3, 32
GRADIENT = (1, SIZE)


@pytest.mark.parametrize(("options", "rows"), [({}, ROWS), ({"loss_tokens": 7}, 7)])
def test_what_is_gathered_is_what_is_said(options: dict[str, Any], rows: int) -> None:
    head, group = make_head(VOCABULARY, SIZE), Group(2)
    prompt = prompt_of(head, ROWS + 1, steps=STEPS, **options)
    shapes = [(2, rows), GRADIENT] * STEPS
    for final_loss, with_last_kl, more in (
        (False, False, []),
        (True, False, [(2, rows)]),
        (False, True, [(3, 1)]),
        (True, True, [(2, rows), (3, 1)]),
    ):
        group.shapes.clear()
        together(head, [prompt], [0, 128, VOCABULARY], 1 << 22, final_loss, group, with_last_kl)
        assert group.shapes == [*shapes, *more]


def test_prompts_share_gathers() -> None:
    head, group = make_head(VOCABULARY, SIZE), Group(2)
    prompts = [prompt_of(head, n, seed=n, steps=2) for n in (41, 21, 31)]
    together(head, prompts, [0, 128, VOCABULARY], 1 << 22, False, group, with_last_kl=True)
    assert group.shapes == [(2, 40 + 20 + 30), (3, SIZE)] * 2 + [(3, 3)]
