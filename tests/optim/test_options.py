"""Every option, and combinations of them, against the oracle's own naive version in float64."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.head import Head
from slot_vllm.optim.holdout import FEWEST_ROWS, SCALES, choose, held_out
from slot_vllm.optim.optimize import Form, Learned, optimize, smallest_workspace_for_all
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.safeguards import Safeguards
from slot_vllm.optim.trust_region import LEAST_BOUND
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
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


def divergences(
    head: Head, prompt: Prompt, learned: Learned, z: torch.Tensor | None = None
) -> torch.Tensor:
    """(n,) float64: of each position, with what was learned. z: (n, V) float64, if not exact."""
    if z is None:
        z = prompt.hidden.double() @ head.weight.double().T
        if head.bias is not None:
            z += head.bias.double()
    shift = head.weight.double() @ learned.delta.double()
    own, adapted = (torch.log_softmax(head.activate(y), dim=1) for y in (z, z + shift))
    return (adapted.exp() * (adapted - own)).sum(dim=1)


def oracle_loss(head: Head, prompt: Prompt, learned: Learned) -> torch.Tensor:
    """() float64, the mean loss of all rows with what was learned."""
    z = (prompt.hidden[:-1].double() + learned.delta.double()) @ head.weight.double().T
    return torch.nn.functional.cross_entropy(head.activate(z), prompt.tokens[1:])


def assert_equal(head: Head, prompt: Prompt, learned: Learned, expected: Learned) -> None:
    params = prompt.params
    what = f"{prompt.rows} rows, {params}, scale {learned.scale} {expected.scale}"
    if params.max_kl is not None and params.max_kl < LEAST_BOUND and not learned.scale:
        # Which float32 does not resolve: documented to leave nothing of delta.
        assert expected.scale < 1e-3, what
        return
    # The search ends within half a percent of the bound, from below.
    slack = 0.005 if params.max_kl is not None else 1e-6
    assert learned.scale <= expected.scale * (1 + 1e-4), what
    assert learned.scale >= expected.scale * (1 - slack), what
    tolerance = max(2e-3 * params.lr, 2e-5)
    ratio = 1.0 if not expected.scale else float(learned.scale / expected.scale)
    assert (learned.delta.double() - ratio * expected.delta).abs().max() <= tolerance, what
    torch.testing.assert_close(
        learned.losses[:-1].double(), expected.losses[:-1], rtol=2e-4, atol=2e-4, msg=what
    )
    torch.testing.assert_close(
        learned.losses[-1:].double(), expected.losses[-1:], rtol=3e-3, atol=2e-4, msg=what
    )
    if params.max_kl is not None and prompt.rows:
        rows = divergences(head, prompt, learned)
        assert max(rows.mean(), rows[-1]) <= 1.01 * params.max_kl + 1e-12, what


OPTIONS: list[dict[str, Any]] = [
    {"weight_decay": 0.1},
    {"reduction": "mean_over_rows", "eps": 1e-3},
    {"loss_tokens": 7},
    {"loss_tokens": 1000},
    {"loss_tokens": "user"},
    {"guard": "holdout", "lr": 0.01},
    {"guard": "holdout", "lr": 1.0},
    {"guard": "holdout", "loss_tokens": "text", "lr": 0.02},
    {"max_kl": 0.02},
    {"max_kl": 1e-6},
    {"max_kl": 3.0, "lr": 1.0},
    {"max_kl": 0.01, "loss_tokens": 5},
    {"preset": "safe", "lr": 0.03},
    {"preset": "paper-vllm"},
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


EFFECTS: list[dict[str, Any]] = [
    {"weight_decay": 0.1},
    {"loss_tokens": 7},
    {"guard": "holdout", "lr": 1.0},
    {"max_kl": 0.02},
    {"max_kl": 0.01, "loss_tokens": 5},
    {"preset": "safe", "lr": 0.03},
]


def assert_effects_equal(
    head: Head, prompt: Prompt, learned: Learned, expected: Learned, plain: Learned
) -> None:
    """plain: what was learned without asking for them."""
    assert_equal(head, prompt, learned, expected)
    torch.testing.assert_close(learned.scale, plain.scale, rtol=0.005, atol=0)
    assert plain.last_kl is None and plain.held_losses is None
    if not learned.losses.numel():
        assert learned.last_kl is None
        return
    assert learned.last_kl is not None and expected.last_kl is not None
    # Of what is applied, which a trust region's search ends a little below its bound.
    found = divergences(head, prompt, learned)[-1]
    torch.testing.assert_close(learned.last_kl.double(), found, rtol=1e-3, atol=1e-7)
    slack = 0.02 if prompt.params.max_kl is not None else 2e-3
    torch.testing.assert_close(found, expected.last_kl, rtol=slack, atol=1e-6)
    assert (learned.held_losses is None) == (prompt.params.guard == "none")
    if learned.held_losses is not None:
        torch.testing.assert_close(
            learned.held_losses.double(), expected.held_losses, rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", EFFECTS, ids=name_of)
def test_effects(options: dict[str, Any], form: type[Form]) -> None:
    head, prompts, expected = problem(name_of(options), None)
    for size in (smallest_workspace_for_all(head), MIB):
        learned, plain = (
            optimize(head, prompts, Workspace(size), True, form, effects=effects)
            for effects in (True, False)
        )
        for each in zip(prompts, learned, expected, plain, strict=True):
            assert_effects_equal(head, *each)


@cache
def problem(name: str, cap: float | None) -> tuple[Head, list[Prompt], list[Learned]]:
    """What all forms are given, and the oracle's answers."""
    options = next(o for o in (*OPTIONS, *EFFECTS) if name_of(o) == name)
    head = make_head(hidden=32, soft_cap=cap, scale=0.5, bias=True)
    prompts = [prompt_of(head, n, seed=n, **{"steps": 5, **options}) for n in (1, 2, 7, 9, 30, 90)]
    return head, prompts, [oracle(head, prompt) for prompt in prompts]


requests = st.fixed_dictionaries(
    {
        "length": st.sampled_from([1, 2, 5, 11, 40, 90]),
        "steps": st.integers(0, 5),
        "lr": st.sampled_from([0.003, 0.05, 0.5]),
    },
    optional={
        "reduction": st.just("mean_over_rows"),
        "loss_tokens": st.sampled_from(["user", "text", 3, 30]),
        "guard": st.just("holdout"),
        "max_kl": st.sampled_from([0.0, 1e-4, 0.05, 1.0]),
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
        workspace = Workspace(smallest_workspace_for_all(head) + extra_bytes)
        memory = workspace._bytes.untyped_storage()
        before = (memory.data_ptr(), memory.nbytes())
        learned = optimize(head, prompts, workspace, final_loss=True)
        assert (memory.data_ptr(), memory.nbytes()) == before
    for prompt, result in zip(prompts, learned, strict=True):
        assert_equal(head, prompt, result, oracle(head, prompt))


def test_a_bound_holds_and_is_used_over_five_decades() -> None:
    head = make_head(hidden=32)
    # With the last one the cached exponentials are made anew, far away.
    for lr in (0.01, 0.3, 3.0, 30.0):
        bounds = [10.0**k for k in (-7, -5, -3, -1, 0)]
        prompts = [prompt_of(head, 60, lr=lr, max_kl=bound) for bound in bounds]
        results = optimize(head, prompts, Workspace(MIB), final_loss=True)
        for bound, prompt, learned in zip(bounds, prompts, results, strict=True):
            rows = divergences(head, prompt, learned)
            kl = max(float(rows.mean()), float(rows[-1]))
            assert kl <= 1.01 * bound
            assert learned.scale == 1 or kl >= 0.98 * bound, (lr, bound, kl)
            loss = oracle_loss(head, prompt, learned)
            torch.testing.assert_close(learned.losses[-1].double(), loss, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("vanishing", [{"max_kl": 0.0}, {"max_kl": 1e-12}])
def test_a_bound_so_small_that_nothing_is_left(vanishing: dict[str, Any]) -> None:
    head = make_head()
    (learned,) = optimize(head, [prompt_of(head, 40, **vanishing)], Workspace(MIB))
    assert learned.scale == 0 and not learned.delta.any()


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_holdout_s_choice_is_the_least_of_float64(
    dtype: torch.dtype, form: type[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of logits in the model's dtype, and of losses that float32 can tell apart."""
    unscaled: list[torch.Tensor] = []
    original = Safeguards.scales

    def scales(self: Safeguards, logits: Form, deltas: torch.Tensor, *rest: Any) -> torch.Tensor:
        unscaled.extend(deltas.clone())
        return original(self, logits, deltas, *rest)

    monkeypatch.setattr(Safeguards, "scales", scales)
    head, chosen, apart = make_head(dtype=dtype), set(), 0
    for lr in (0.003, 0.01, 0.02, 0.05, 0.3):
        for seed in range(4):
            prompt = prompt_of(head, 90, seed, lr=lr, guard="holdout")
            (learned,) = optimize(head, [prompt], Workspace(4 * MIB), form=form)
            chosen.add(float(learned.scale))
            held = torch.from_numpy(held_out(89).nonzero()[0])
            shift = head.weight.double() @ unscaled.pop().double()
            z = (prompt.hidden @ head.weight.T)[held].double()
            losses = torch.stack(
                [
                    torch.nn.functional.cross_entropy(z + k * shift, prompt.tokens[held + 1])
                    for k in SCALES
                ]
            ).sort()
            if losses.values[1] - losses.values[0] > 2e-6:
                apart += 1
                assert learned.scale == SCALES[losses.indices[0]], (lr, seed)
    # Some were neither dropped nor left alone, and the test could tell.
    assert len(chosen) >= 4 and apart >= 15


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bound_holds_in_the_model_s_dtype(dtype: torch.dtype, form: type[Form]) -> None:
    """Of the distribution that is sampled from: of logits in the model's dtype. The larger they
    are, the more that differs from the exact one."""
    head, used = make_head(500, dtype=dtype), 0
    for seed in range(4):
        for bound in (1e-5, 1e-3, 0.05):
            prompt = enlarged(prompt_of(head, 5, seed, max_kl=bound), 4)
            (learned,) = optimize(head, [prompt], Workspace(4 * MIB), form=form)
            rounded = (prompt.hidden @ head.weight.T).double()
            rows = divergences(head, prompt, learned, rounded)
            kl = max(rows.mean(), rows[-1])
            assert kl <= 1.01 * bound, (seed, bound)
            used += bool(kl >= 0.98 * bound)
    assert used >= 4


def enlarged(prompt: Prompt, factor: float) -> Prompt:
    """With logits that many times as large."""
    return replace(prompt, hidden=prompt.hidden * factor)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"max_kl": 0.003}, {"max_kl": 10.0}, {"guard": "holdout"}])
def test_safeguards_of_logits_that_span_hundreds(
    options: dict[str, Any], dtype: torch.dtype, form: type[Form]
) -> None:
    """What is e^-100 of its row's maximum is nothing in float32, but no reason to drop a delta."""
    head = make_head(500, dtype=dtype)
    for seed in range(4):
        prompt = enlarged(prompt_of(head, 40, seed, lr=1e-3, **options), 20)
        z = prompt.hidden @ head.weight.T
        assert z.float().amax(dim=1).sub(z.float().amin(dim=1)).max() > 200
        (learned,) = optimize(head, [prompt], Workspace(4 * MIB), form=form)
        if "guard" in options:
            wide = replace(prompt, hidden=prompt.hidden.float())
            (exact,) = optimize(
                Head(head.weight.float()), [wide], Workspace(4 * MIB), form=PlainForm
            )
            assert learned.scale == exact.scale
            continue
        rows = divergences(head, prompt, learned, z.double())
        kl, bound = max(rows.mean(), rows[-1]), options["max_kl"]
        assert kl <= 1.01 * bound and (learned.scale == 1 or kl >= 0.98 * bound), (seed, kl)


@pytest.mark.parametrize("options", [{"guard": "holdout"}, {"preset": "safe"}])
def test_too_few_rows_for_a_holdout_leave_nothing(options: dict[str, Any]) -> None:
    head = make_head()
    for rows in range(FEWEST_ROWS + 2):
        (learned,) = optimize(head, [prompt_of(head, rows + 1, **options)], Workspace(MIB))
        learns = rows >= FEWEST_ROWS
        assert bool(learned.losses.numel()) == learns
        assert learns or float(learned.scale) == (1.0 if rows == 0 else 0.0)


def test_what_is_held_out() -> None:
    assert held_out(FEWEST_ROWS - 1).all()
    for rows in range(FEWEST_ROWS, 600):
        held = held_out(rows)
        assert not held[0] and 1 <= held.sum() <= rows / 3, rows
        # In blocks: most of what is held out has a neighbour that is, too.
        assert rows < 64 or (held[1:] & held[:-1]).sum() >= 0.8 * held.sum()


def test_the_least_of_equally_good_scales_is_chosen() -> None:
    losses = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [3.0, 2.0, 1.0, 1.0, 2.0],
            [1.0, 0.9, float("nan"), 0.8, float("inf")],
            [float("nan")] * 5,
        ]
    )
    assert choose(losses).tolist() == [SCALES[0], SCALES[2], SCALES[3], 0.0]


def test_a_prompt_whose_tokens_cannot_be_told_is_an_error() -> None:
    head = make_head()
    prompt = make_prompt(head, 20, SlotParams(loss_tokens="user"))
    with pytest.raises(ValueError, match="20 flags are needed"):
        optimize(head, [prompt], Workspace(MIB))


@pytest.mark.parametrize("final_loss", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "safe"}],
)
def test_of_hidden_states_that_are_not_finite_nothing_is_left(
    settings: dict[str, Any], final_loss: bool
) -> None:
    head = make_head(300, 32)
    params = SlotParams(**settings)
    good, bad = (make_prompt(head, 40, params, seed=i) for i in range(2))
    # Its last row has no target; learning does not see it.
    bad.hidden[-1, 0] = torch.nan
    alone = optimize(head, [good], Workspace(1 << 22), final_loss)[0]
    learned = optimize(head, [bad, good], Workspace(1 << 22), final_loss)
    assert [bool(one.finite) for one in learned] == [False, True]
    assert not learned[0].delta.any()
    torch.testing.assert_close(learned[1].delta, alone.delta)
