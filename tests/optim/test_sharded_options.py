"""Every option on the ranks of a vocabulary-sharded head, each in a thread, against the oracle."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, optimize, smallest_workspace_for_all
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.scaled_rows import ScaledRows
from slot_vllm.optim.shard import OtherRankFailed
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from tests.optim.test_optimize import MIB, make_head
from tests.optim.test_options import (
    EFFECTS,
    OPTIONS,
    assert_effects_equal,
    assert_equal,
    divergences,
    drawn_prompts,
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
    effects: bool = False,
) -> list[Learned]:
    """What the ranks learned, which is the same bits on each."""
    group = group or Group(len(bounds) - 1)
    results = on_ranks(
        group, head, prompts, bounds, extra_bytes, final_loss, smallest_workspace_for_all, effects
    )
    for result in results:
        assert not isinstance(result, Exception), result
    learned: list[Learned] = []
    for first, *others in zip(*results, strict=True):
        for other in others:
            for name in ("delta", "losses", "scale", "finite", "last_kl", "held_losses"):
                one, two = getattr(first, name), getattr(other, name)
                assert (one is None and two is None) or torch.equal(one, two), name
        learned.append(first)
    return learned


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("options", EFFECTS, ids=name_of)
def test_effects(options: dict[str, Any], cap: float | None) -> None:
    head, prompts, expected = problem(name_of(options), cap)
    bounds = [0, 100, 228, head.vocabulary, head.vocabulary]
    learned, plain = (together(head, prompts, bounds, effects=asked) for asked in (True, False))
    for each in zip(prompts, learned, expected, plain, strict=True):
        assert_effects_equal(head, *each)


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_each_option(options: dict[str, Any], cap: float | None) -> None:
    """Unequal shards, of which the last is nothing but padding."""
    head, prompts, expected = problem(name_of(options), cap)
    learned = together(head, prompts, [0, 100, 228, head.vocabulary, head.vocabulary])
    for each in zip(prompts, learned, expected, strict=True):
        assert_equal(head, *each)


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
def test_a_bound_holds_and_is_used_over_nine_decades(bounds: list[int]) -> None:
    head = make_head(hidden=32)
    for lr in (0.01, 0.3, 30.0):
        kls = [10.0**k for k in (-9, -8, -7, -5, -3, -1, 0)]
        prompts = [prompt_of(head, 60, seed=1, lr=lr, max_kl=bound) for bound in kls]
        for bound, prompt, learned in zip(
            kls, prompts, together(head, prompts, bounds), strict=True
        ):
            rows = divergences(head, prompt, learned)
            kl = max(float(rows.mean()), float(rows[-1]))
            assert kl <= 1.01 * bound
            assert learned.scale == 1 or kl >= 0.98 * bound, (lr, bound, kl)


@pytest.mark.parametrize("vanishing", [{"max_kl": 0.0}, {"max_kl": 1e-12}, {"guard": "holdout"}])
def test_nothing_is_left_on_any_rank(vanishing: dict[str, Any]) -> None:
    head = make_head(VOCABULARY, 32)
    prompt = prompt_of(head, 40, lr=0.5, **vanishing)
    if "guard" in vanishing:
        # Held-out rows have targets that no other row has: they lose by whatever is learned.
        tokens = torch.zeros(40, dtype=torch.int64)
        tokens[1:][[i // 4 % 4 == 2 for i in range(39)]] = 200
        prompt = replace(prompt, tokens=tokens)
    (learned,) = together(head, [prompt], [0, 100, VOCABULARY])
    assert learned.scale == 0 and not learned.delta.any()


MIXED: tuple[dict[str, Any], ...] = (
    {"preset": "safe"},
    {"max_kl": 0.01},
    {"guard": "holdout"},
    {},
)


@pytest.mark.parametrize("extra_bytes", [0, MIB])
@pytest.mark.parametrize(
    ("owner", "place", "at_call"),
    [
        (ScaledRows, "losses", 1),
        (ScaledRows, "losses", 2),
        (ScaledRows, "divergences", 2),
        (ScaledRows, "divergences", 20),
        (ScaledRows, "over_ranks", 1),
        (ScaledRows, "over_ranks", 12),
        (ScaledRows, "__init__", 1),
        (TwoPassForm, "sums", 4),
    ],
)
def test_a_rank_that_fails_alone_fails_all_and_none_waits(
    owner: type, place: str, at_call: int, extra_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    prompts = [
        prompt_of(head, n, seed=n, steps=3, **options)
        for n, options in zip((30, 9, 17, 40), MIXED, strict=True)
    ]
    original = getattr(owner, place)
    local = threading.local()

    def injected(self: Any, *args: Any, **kwargs: Any) -> Any:
        shard = args[2] if place == "__init__" else self._shard
        if shard.first_token:
            local.calls = getattr(local, "calls", 0) + 1
            if local.calls == at_call:
                raise RuntimeError("injected")
        return original(self, *args, **kwargs)

    group = Group(2)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, injected)
        well, ill = on_ranks(
            group, head, prompts, bounds, extra_bytes, smallest=smallest_workspace_for_all
        )
    assert isinstance(well, OtherRankFailed)
    assert isinstance(ill, RuntimeError) and str(ill) == "injected"
    # And the group is as good as before.
    together(head, prompts, bounds, extra_bytes, group=group)


def test_rows_are_split_by_all_ranks_or_none() -> None:
    head, bounds = make_head(VOCABULARY, 32), [0, 100, VOCABULARY]
    prompt, group = prompt_of(head, 30, preset="safe"), Group(2)

    def work(rank: int) -> list[Learned]:
        own = replace(prompt, tokens=prompt.tokens[: 30 - 20 * rank])
        weight = head.weight[bounds[rank] : bounds[rank + 1]]
        return optimize(Head(weight), [own], Workspace(MIB), shard=group.shard(rank, bounds))

    well, ill = group.run(work)
    assert isinstance(ill, IndexError) and isinstance(well, OtherRankFailed)


ROWS, STEPS, SIZE = 40, 3, 32
# A quarter is held out, in blocks of 5 rows.
HELD = 10
LOSSES, GRADIENT = (2, ROWS), (1, SIZE)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, [LOSSES, GRADIENT] * STEPS),
        ({"guard": "holdout"}, [(2, ROWS - HELD), GRADIENT] * STEPS + [(2, 5, HELD)]),
        ({"max_kl": 0.01}, [LOSSES, GRADIENT] * STEPS + [(3, ROWS + 1)] * 16),
        (
            {"preset": "safe"},
            [(2, ROWS - HELD), GRADIENT] * STEPS + [(2, 5, HELD)] + [(3, ROWS + 1)] * 16,
        ),
    ],
    ids=lambda value: name_of(value) if isinstance(value, dict) else "",
)
def test_what_is_gathered_is_what_is_said(
    options: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    head, group = make_head(VOCABULARY, SIZE), Group(2)
    prompt = prompt_of(head, ROWS + 1, steps=STEPS, **options)
    bounds = [0, 128, VOCABULARY]
    together(head, [prompt], bounds, 1 << 22, final_loss=False, group=group)
    assert group.shapes == shapes
    # The loss with what is applied.
    group.shapes.clear()
    together(head, [prompt], bounds, 1 << 22, final_loss=True, group=group)
    assert sorted(group.shapes) == sorted([*shapes, shapes[0]])
    # And its effects: of a trust region's rows the last is one.
    group.shapes.clear()
    together(head, [prompt], bounds, 1 << 22, final_loss=False, group=group, effects=True)
    assert group.shapes == [*shapes, (3, 1)]


def test_prompts_with_an_option_share_its_gathers() -> None:
    head, group = make_head(VOCABULARY, SIZE), Group(2)
    prompts = [
        prompt_of(head, n, seed=n, steps=2, **options)
        for n, options in ((41, {"preset": "safe"}), (21, {}), (31, {"max_kl": 0.1}))
    ]
    together(head, prompts, [0, 128, VOCABULARY], 1 << 22, final_loss=False, group=group)
    rows = 30 + 20 + 30
    assert group.shapes == [(2, rows), (3, SIZE)] * 2 + [(2, 5, HELD)] + [(3, 41 + 31)] * 16
