"""The closed form against float64 autograd."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.bench.published import published_delta
from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.form import Form, smallest_workspace
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.oracle import oracle, tiled_oracle
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.rows import Rows
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

MIB = 1 << 20


def make_head(
    vocabulary: int = 307,
    hidden: int = 64,
    soft_cap: float | None = None,
    scale: float = 1.0,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, hidden, generator=generator) * 0.3
    offset = torch.randn(vocabulary, generator=generator) if bias else None
    return Head(weight.to(dtype), None if offset is None else offset.to(dtype), soft_cap, scale)


def make_prompt(head: Head, length: int, params: SlotParams, seed: int = 0) -> Prompt:
    generator = torch.Generator().manual_seed(1000 + seed)
    hidden = torch.randn(length, head.hidden_size, generator=generator)
    tokens = torch.randint(head.vocabulary, (length,), generator=generator)
    return Prompt(hidden.to(head.weight.dtype), tokens, params)


def tolerance(params: SlotParams) -> float:
    return max(2e-3 * params.lr, 2e-5)


def assert_equal_to_oracle(head: Head, prompts: list[Prompt], workspace: Workspace) -> None:
    memory = workspace._bytes.untyped_storage()
    before = (memory.data_ptr(), memory.nbytes())
    learned = optimize(head, prompts, workspace, final_loss=True)
    # torch resizes an `out` that does not fit, and with it the storage behind it.
    assert (memory.data_ptr(), memory.nbytes()) == before
    for prompt, result in zip(prompts, learned, strict=True):
        expected = oracle(head, prompt)
        error = (result.delta.double() - expected.delta).abs().max().item()
        assert error <= tolerance(prompt.params), (prompt.rows, prompt.params, error)
        torch.testing.assert_close(
            result.losses.double(), expected.losses, rtol=2e-4, atol=2e-4, msg=str(prompt.params)
        )


@pytest.mark.parametrize("lr", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("soft_cap", "scale", "bias"),
    [(None, 1.0, False), (5.0, 1.0, False), (None, 0.25, True), (30.0, 2.0, True)],
)
def test_mixed_lengths_and_steps(
    lr: float, soft_cap: float | None, scale: float, bias: bool
) -> None:
    head = make_head(soft_cap=soft_cap, scale=scale, bias=bias)
    lengths = [1, 2, 3, 17, 64, 500]
    prompts = [
        make_prompt(head, n, SlotParams(steps=steps, lr=lr), seed=31 * n + steps)
        for n in lengths
        for steps in (0, 1, 2, 5, 10)
    ]
    assert_equal_to_oracle(head, prompts, Workspace(8 * MIB))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, 5, 17, 64, 100, 300]),
            st.integers(0, 10),
            st.sampled_from([0.001, 0.03, 0.1, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
    soft_cap=st.sampled_from([None, 5.0]),
    extra_bytes=st.sampled_from([0, 5_000, 50_000, 1 << 22]),
    vocabulary=st.sampled_from([2, 129, 307]),
)
def test_any_batch_in_any_workspace(
    requests: list[tuple[int, int, float]],
    soft_cap: float | None,
    extra_bytes: int,
    vocabulary: int,
) -> None:
    head = make_head(vocabulary=vocabulary, hidden=32, soft_cap=soft_cap)
    prompts = [
        make_prompt(head, n, SlotParams(steps=steps, lr=lr), seed=i)
        for i, (n, steps, lr) in enumerate(requests)
    ]
    assert_equal_to_oracle(head, prompts, Workspace(smallest_workspace(head) + extra_bytes))


@pytest.mark.parametrize(
    ("soft_cap", "scale", "bias"), [(None, 1.0, False), (5.0, 2.0, True), (None, 0.5, True)]
)
def test_the_tiled_oracle_is_the_oracle(
    monkeypatch: pytest.MonkeyPatch, soft_cap: float | None, scale: float, bias: bool
) -> None:
    monkeypatch.setattr("slot_vllm.optim.oracle._TILE_BYTES", 7 * 8 * 307)
    monkeypatch.setattr("slot_vllm.optim.oracle._VOCABULARY_TILE", 100)
    head = make_head(soft_cap=soft_cap, scale=scale, bias=bias, dtype=torch.bfloat16)
    for length in (1, 2, 30):
        prompt = make_prompt(head, length, SlotParams())
        expected = oracle(head, prompt).delta
        torch.testing.assert_close(tiled_oracle(head, prompt), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", [PlainForm, CachedForm])
@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
def test_every_form_equals_the_oracle(form: type[Form], scale: float) -> None:
    head = make_head(scale=scale, bias=True)
    prompts = [make_prompt(head, n, SlotParams(lr=0.03), seed=n) for n in (2, 9, 40)]
    for learned, prompt in zip(
        optimize(head, prompts, Workspace(MIB), form=form), prompts, strict=True
    ):
        error = (learned.delta.double() - oracle(head, prompt).delta).abs().max().item()
        assert error <= tolerance(prompt.params)


@pytest.mark.parametrize("extra_rows", [300, 120])
def test_a_delta_that_goes_far(monkeypatch: pytest.MonkeyPatch, extra_rows: int) -> None:
    """Cached exponentials then are made anew, more than once, or given up by a prompt that does
    not fit the cache; beside it a prompt that stays near."""
    made: list[int] = []
    refill = Rows.refill

    def watched(rows: Rows, request: int) -> None:
        made.append(request)
        refill(rows, request)

    monkeypatch.setattr(Rows, "refill", watched)
    head = make_head(hidden=128)
    prompts = [
        make_prompt(head, 30, SlotParams(steps=6, lr=3.0), seed=1),
        make_prompt(head, 40, SlotParams(steps=6, lr=0.01), seed=2),
        make_prompt(head, 120, SlotParams(steps=6, lr=3.0), seed=3),
    ]
    workspace = Workspace(smallest_workspace(head) * 3 + extra_rows * head.vocabulary * 4)
    assert_equal_to_oracle(head, prompts, workspace)
    assert made.count(0) >= 2 and 1 not in made
    assert (2 in made) == (extra_rows == 300)


def test_float16_is_near_the_oracle() -> None:
    head = make_head(vocabulary=1000, hidden=128, dtype=torch.float16)
    prompt = make_prompt(head, 200, SlotParams(lr=0.01))
    (learned,) = optimize(head, [prompt], Workspace(8 * MIB))
    error = (learned.delta.double() - oracle(head, prompt).delta).abs().mean()
    assert error <= 0.01 * 0.01


def test_own_hyperparameters_per_request() -> None:
    head = make_head()
    settings = [
        SlotParams(steps=4, lr=0.1, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.5),
        SlotParams(steps=7, lr=0.02, betas=(0.0, 0.95), eps=1e-6, weight_decay=0.0),
        SlotParams(steps=1, lr=0.3),
    ]
    prompts = [make_prompt(head, 20 + i, p, seed=i) for i, p in enumerate(settings)]
    assert_equal_to_oracle(head, prompts, Workspace(8 * MIB))


@pytest.mark.parametrize("neighbour", [SlotParams(steps=5, lr=1.0), SlotParams(steps=9, lr=1e-3)])
def test_a_delta_does_not_depend_on_its_batch(neighbour: SlotParams) -> None:
    head = make_head()
    mine = make_prompt(head, 40, SlotParams(steps=5), seed=7)
    workspace = Workspace(8 * MIB)
    (alone,) = optimize(head, [mine], workspace)
    others = [make_prompt(head, n, neighbour, seed=n) for n in (3, 64, 200)]
    together = optimize(head, [*others, mine], workspace)[-1]
    assert (alone.delta - together.delta).abs().max() <= 1e-6


def test_no_steps_or_one_token_gives_zero() -> None:
    head = make_head()
    prompts = [
        make_prompt(head, 1, SlotParams(steps=5)),
        make_prompt(head, 30, SlotParams(steps=0)),
    ]
    for result in optimize(head, prompts, Workspace(8 * MIB)):
        assert not result.delta.any()
        assert not result.losses.numel()


def test_losses_before_each_step_come_without_the_last_pass() -> None:
    head = make_head()
    prompt = make_prompt(head, 30, SlotParams(steps=3))
    workspace = Workspace(8 * MIB)
    (short,) = optimize(head, [prompt], workspace)
    (full,) = optimize(head, [prompt], workspace, final_loss=True)
    assert short.losses.shape == (3,)
    assert full.losses.shape == (4,)
    assert torch.equal(short.losses, full.losses[:3])
    assert torch.equal(short.delta, full.delta)


@pytest.mark.parametrize("lengths", [(18, 1002), (32, 32, 302), (32, 32, 302, 2002)])
def test_a_short_prompt_beside_one_that_overflows_the_cache(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else they would not be together.
    monkeypatch.setattr("slot_vllm.optim.optimize._groups", lambda order, *_: [order])
    head = make_head(vocabulary=1000, hidden=16)
    prompts = [make_prompt(head, n, SlotParams(steps=2), seed=n) for n in lengths]
    assert_equal_to_oracle(head, prompts, Workspace(MIB))


def test_a_delta_that_is_not_finite_is_replaced_by_zero() -> None:
    head = make_head()
    good, bad = (make_prompt(head, 20, SlotParams(steps=3), seed=i) for i in range(2))
    bad.hidden[4, 5] = float("nan")
    (own,) = optimize(head, [good], Workspace(MIB))
    first, second = optimize(head, [bad, good], Workspace(MIB))
    assert not first.finite and not first.delta.any()
    assert second.finite and (second.delta - own.delta).abs().max() <= 1e-6


def test_a_workspace_too_small_is_an_error() -> None:
    head = make_head()
    prompt = make_prompt(head, 30, SlotParams())
    with pytest.raises(MemoryError, match="SLOT workspace"):
        optimize(head, [prompt], Workspace(smallest_workspace(head) - 64))
    optimize(head, [prompt], Workspace(smallest_workspace(head)))


@pytest.mark.parametrize("lr", [1e-4, 1e-3, 0.1])
def test_bf16_is_no_farther_from_the_oracle_than_the_published_loop(lr: float) -> None:
    head = make_head(vocabulary=1000, hidden=128, dtype=torch.bfloat16)
    prompt = make_prompt(head, 200, SlotParams(lr=lr))
    expected = oracle(head, prompt).delta
    (mine,) = optimize(head, [prompt], Workspace(8 * MIB))
    ours = (mine.delta.double() - expected).abs()
    theirs = (published_delta(head, prompt).double() - expected).abs()
    assert ours.mean() <= theirs.mean() and ours.max() <= theirs.max()


@pytest.mark.parametrize("lr", [1e-4, 1e-3])
def test_in_bf16_the_shift_of_the_logits_survives(lr: float) -> None:
    head = make_head(vocabulary=5000, hidden=128, dtype=torch.bfloat16)
    (learned,) = optimize(head, [make_prompt(head, 100, SlotParams(lr=lr))], Workspace(8 * MIB))
    shift = head.exact_shift(learned.delta.unsqueeze(0))
    expected = learned.delta.double() @ head.weight.double().T
    assert (shift[0] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("form", [CachedForm, PlainForm])
def test_a_batch_is_split_rather_than_computed_again(
    form: type[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(vocabulary=2048)
    params = SlotParams(steps=5)
    prompts = [make_prompt(head, 101, params, seed=i) for i in range(5)]
    computed = []
    product = Head.product

    def counted(self: Head, hidden: torch.Tensor, out: torch.Tensor) -> None:
        computed.append(len(hidden))
        product(self, hidden, out)

    monkeypatch.setattr(Head, "product", counted)
    # Room for two prompts' rows and what goes with them.
    learned = optimize(head, prompts, Workspace(5 * 100 * 2048 * 4 // 2), form=form)
    assert sum(computed) == 500 and len(computed) == 3
    for prompt, result in zip(prompts, learned, strict=True):
        error = (result.delta.double() - oracle(head, prompt).delta).abs().max().item()
        assert error <= tolerance(params)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 8, 20])
@pytest.mark.parametrize("form", [CachedForm, PlainForm, TwoPassForm])
def test_one_value_that_is_not_finite_makes_its_delta_zero(
    form: type[Form], row: int, value: float
) -> None:
    """Wherever it is: the last row (20) has no target."""
    head = make_head()
    prompts = [make_prompt(head, 21, SlotParams(steps=3), seed=i) for i in range(3)]
    prompts[1].hidden[row, 5] = value
    sound, broken, other = optimize(head, prompts, Workspace(8 * MIB), form=form)
    assert not broken.finite and broken.known_not_finite() and not broken.delta.any()
    for learned, prompt in ((sound, prompts[0]), (other, prompts[2])):
        assert learned.finite and not learned.known_not_finite()
        torch.testing.assert_close(
            learned.delta, oracle(head, prompt).delta.float(), rtol=0, atol=2e-4
        )


@pytest.mark.parametrize("form", [CachedForm, PlainForm, TwoPassForm])
def test_a_loss_that_is_not_finite_makes_the_delta_zero(
    form: type[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though sums, and so gradient and delta, are finite."""
    sums = form.sums

    def broken(self: Any, active: int, deltas: torch.Tensor | None) -> Any:
        column_sums, losses = sums(self, active, deltas)
        if deltas is not None:
            losses[-1] = torch.nan
        return column_sums, losses

    monkeypatch.setattr(form, "sums", broken)
    head = make_head()
    prompts = [make_prompt(head, 9, SlotParams(steps=2), seed=i) for i in range(2)]
    sound, without = optimize(head, prompts, Workspace(8 * MIB), form=form)
    assert sound.finite and sound.delta.any()
    assert not without.finite and not without.delta.any()
