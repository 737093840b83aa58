"""Every option, and combinations of them, against the oracle's own naive version in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.form import Form, smallest_workspace
from slot_vllm.optim.head import Head
from slot_vllm.optim.last_kl import last_kl
from slot_vllm.optim.optimize import Learned, optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SHARING, SlotParams
from slot_vllm.setting import Setting
from tests.optim.test_optimize import MIB, make_head, make_prompt

FORMS: list[type[Form]] = [CachedForm, PlainForm, TwoPassForm]


def prompt_of(head: Head, length: int, seed: int = 0, **settings: Any) -> Prompt:
    made = make_prompt(head, length, SlotParams(**settings), seed)
    if settings.get("loss_tokens") in ("user", "text"):
        generator = torch.Generator().manual_seed(seed)
        counts = (torch.rand(length, generator=generator) < 0.7).tolist()
        return Prompt(made.hidden, made.tokens, made.params, counts)
    return made


def drawn_prompts(head: Head, requests: list[dict[str, Any]]) -> list[Prompt]:
    """Of lengths and settings that were drawn."""
    return [prompt_of(head, seed=i, **drawn) for i, drawn in enumerate(requests)]


def assert_equal(head: Head, prompt: Prompt, learned: Learned, expected: Learned) -> None:
    params = prompt.params
    what = f"{prompt.rows} rows, {params}"
    tolerance = max(2e-3 * params.lr, 2e-5)
    assert (learned.delta.double() - expected.delta).abs().max() <= tolerance, what
    torch.testing.assert_close(
        learned.losses[:-1].double(), expected.losses[:-1], rtol=2e-4, atol=2e-4, msg=what
    )
    torch.testing.assert_close(
        learned.losses[-1:].double(), expected.losses[-1:], rtol=3e-3, atol=2e-4, msg=what
    )


# What is tried of each setting, if only of those on which delta depends.
TRIED: dict[str, tuple[Any, ...]] = {
    name: Setting.of(field).tried
    for name, field in SlotParams.model_fields.items()
    if name not in SHARING
}
OPTIONS: list[dict[str, Any]] = [
    *({name: value} for name, values in TRIED.items() for value in values),
    {"reduction": "mean_over_rows", "eps": 1e-3},
    {"loss_tokens": 1000},
    {"loss_tokens": "text", "lr": 1.0},
]


def served() -> list[Any]:
    """Each option with each form that serves it, with a soft cap and without."""
    return [
        pytest.param(options, form, cap, id=f"{form.__name__}-{cap}-{name_of(options)}")
        for options in OPTIONS
        for form in FORMS
        for cap in (None, 5.0)
        if form is not CachedForm or cap is None
    ]


def name_of(options: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize(("options", "form", "cap"), served())
def test_each_option(options: dict[str, Any], form: type[Form], cap: float | None) -> None:
    head, prompts, expected = problem(name_of(options), cap)
    learned = optimize(head, prompts, Workspace(MIB), final_loss=True, form=form)
    for each in zip(prompts, learned, expected, strict=True):
        assert_equal(head, *each)


@pytest.mark.parametrize(("loss_tokens", "rows"), [("all", [0, 1, 4, 5, 7]), (4, [4, 5, 7])])
def test_tokens_that_may_not_be_learned_from(loss_tokens: Any, rows: list[int]) -> None:
    head = make_head(hidden=32)
    made = prompt_of(head, 9, loss_tokens=loss_tokens)
    # As where images stand: the first row that counts none the less predicts a token after one.
    counts = [True, True, True, False, False, True, True, False, True]
    prompt = Prompt(made.hidden, made.tokens, made.params, counts)
    kept = prompt.of_rows_that_count()
    assert torch.equal(kept.hidden[:-1], made.hidden[rows])
    assert torch.equal(kept.tokens[1:], made.tokens[[row + 1 for row in rows]])
    (learned,) = optimize(head, [prompt], Workspace(MIB), final_loss=True)
    assert learned.rows == len(rows)
    assert_equal(head, prompt, learned, oracle(head, prompt))


@pytest.mark.parametrize(("options", "form", "cap"), served())
def test_last_kl(options: dict[str, Any], form: type[Form], cap: float | None) -> None:
    head, prompts, expected = problem(name_of(options), cap)
    # In the smallest workspace the longest prompt takes long, and shows what the next one shows.
    for size, those in ((smallest_workspace(head), prompts[:-1]), (MIB, prompts)):
        learned = optimize(head, those, Workspace(size), True, form, with_last_kl=True)
        for prompt, result, exact in zip(those, learned, expected[: len(those)], strict=True):
            assert_equal(head, prompt, result, exact)
            assert_last_kl_equal(result, exact)


def assert_last_kl_equal(learned: Learned, expected: Learned) -> None:
    if not expected.losses.numel():
        assert learned.last_kl is None
        return
    assert learned.last_kl is not None and expected.last_kl is not None
    torch.testing.assert_close(learned.last_kl.double(), expected.last_kl, rtol=2e-3, atol=1e-6)


def exact_last_kl(head: Head, prompt: Prompt, learned: Learned) -> torch.Tensor:
    """Of the delta that was learned, float64."""
    weight = head.weight.double()
    z, shift = weight @ prompt.hidden[-1].double(), weight @ learned.delta.double()
    own, adapted = (y.log_softmax(dim=0) for y in (z, z + shift))
    return (adapted.exp() * (adapted - own)).sum()


def test_a_small_divergence_keeps_its_digits() -> None:
    head = make_head(hidden=32)
    for lr in (1e-4, 1e-3, 1e-2, 3.0):
        prompts = [prompt_of(head, 60, seed, lr=lr, steps=1) for seed in range(12)]
        learned = optimize(head, prompts, Workspace(MIB), with_last_kl=True)
        for prompt, result in zip(prompts, learned, strict=True):
            assert result.last_kl is not None
            expected = exact_last_kl(head, prompt, result)
            torch.testing.assert_close(result.last_kl.double(), expected, rtol=1e-3, atol=0)


def test_a_divergence_of_logits_that_span_hundreds() -> None:
    head, hidden = make_head(500), 20 * make_prompt(make_head(500), 3, SlotParams()).hidden
    z = hidden.double() @ head.weight.double().T
    assert (z.amax(dim=1) - z.amin(dim=1)).max() > 200
    deltas = torch.randn(3, head.hidden_size, generator=torch.Generator().manual_seed(0))
    found = last_kl(head, hidden, deltas, Workspace(MIB))
    own, adapted = (y.log_softmax(dim=1) for y in (z, z + deltas.double() @ head.weight.double().T))
    expected = (adapted.exp() * (adapted - own)).sum(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@cache
def problem(name: str, cap: float | None) -> tuple[Head, list[Prompt], list[Learned]]:
    """What all forms are given, and the oracle's answers."""
    options = next(o for o in OPTIONS if name_of(o) == name)
    head = make_head(hidden=32, soft_cap=cap, scale=0.5, bias=True)
    prompts = [prompt_of(head, n, seed=n, **{"steps": 5, **options}) for n in (1, 2, 7, 9, 30, 90)]
    return head, prompts, [oracle(head, prompt) for prompt in prompts]


_DRAWN = ("preset", "steps", "lr")
requests = st.fixed_dictionaries(
    {
        "length": st.sampled_from([1, 2, 5, 11, 40, 90]),
        "steps": st.integers(0, 5),
        "lr": st.sampled_from([0.003, 0.05, 0.5]),
    },
    optional={
        **{name: st.sampled_from(values) for name, values in TRIED.items() if name not in _DRAWN},
        "loss_tokens": st.sampled_from(["user", "text", 3, 30]),
    },
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    requests=st.lists(requests, min_size=1, max_size=5),
    soft_cap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.5]),
    two_pass=st.booleans(),
    extra_bytes=st.sampled_from([0, 20_000, 1 << 22]),
)
def test_any_mixture_in_any_workspace(
    requests: list[dict[str, Any]],
    soft_cap: float | None,
    scale: float,
    two_pass: bool,
    extra_bytes: int,
) -> None:
    head = make_head(vocabulary=129, hidden=16, soft_cap=soft_cap, scale=scale)
    prompts = drawn_prompts(head, requests)
    with pytest.MonkeyPatch.context() as patch:
        if two_pass:
            patch.setattr("slot_vllm.optim.optimize.form_for", lambda *_: TwoPassForm)
        workspace = Workspace(smallest_workspace(head) + extra_bytes)
        memory = workspace._bytes.untyped_storage()
        before = (memory.data_ptr(), memory.nbytes())
        learned = optimize(head, prompts, workspace, final_loss=True)
        assert (memory.data_ptr(), memory.nbytes()) == before
    for prompt, result in zip(prompts, learned, strict=True):
        assert_equal(head, prompt, result, oracle(head, prompt))


def test_a_prompt_whose_tokens_cannot_be_told_is_an_error() -> None:
    head = make_head()
    prompt = make_prompt(head, 20, SlotParams(loss_tokens="user"))
    with pytest.raises(ValueError, match="20 flags are needed"):
        optimize(head, [prompt], Workspace(MIB))


@pytest.mark.parametrize("final_loss", [False, True])
def test_of_hidden_states_that_are_not_finite_nothing_is_left(final_loss: bool) -> None:
    head = make_head(300, 32)
    params = SlotParams()
    good, bad = (make_prompt(head, 40, params, seed=i) for i in range(2))
    # Its last row has no target; learning does not see it.
    bad.hidden[-1, 0] = torch.nan
    alone = optimize(head, [good], Workspace(1 << 22), final_loss)[0]
    learned = optimize(head, [bad, good], Workspace(1 << 22), final_loss)
    assert [bool(one.finite) for one in learned] == [False, True]
    assert not learned[0].delta.any()
    torch.testing.assert_close(learned[1].delta, alone.delta)
