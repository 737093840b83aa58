"""Every option, and combinations of them, against the oracle's own naive version in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.head import Head
from slot_vllm.optim.holdout import FEWEST_ROWS, SCALES
from slot_vllm.optim.optimize import (
    Form,
    Learned,
    form_for,
    optimize,
    smallest_workspace_for_all,
)
from slot_vllm.optim.oracle import _within, oracle
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.optim.test_optimize import MIB, make_head, make_prompt

FORMS = [CachedForm, PlainForm, TwoPassForm]


def prompt_of(head: Head, length: int, seed: int = 0, **settings: Any) -> Prompt:
    made = make_prompt(head, length, SlotParams(**settings), seed)
    if settings.get("loss_tokens") in ("user", "text"):
        generator = torch.Generator().manual_seed(seed)
        counts = (torch.rand(length, generator=generator) < 0.7).tolist()
        return Prompt(made.hidden, made.tokens, made.params, counts)
    return made


def divergences(head: Head, prompt: Prompt, learned: Learned) -> torch.Tensor:
    """(n,) float64: of each position, with what was learned."""
    z = prompt.hidden.double() @ head.weight.double().T
    if head.bias is not None:
        z += head.bias.double()
    shift = head.weight.double() @ learned.delta.double()
    if learned.bias is not None:
        shift += learned.bias.double()
    own, adapted = (torch.log_softmax(head.activate(y), dim=1) for y in (z, z + shift))
    return (adapted.exp() * (adapted - own)).sum(dim=1)


def assert_equal(head: Head, prompt: Prompt, learned: Learned) -> None:
    params, expected = prompt.params, oracle(head, prompt)
    what = f"{prompt.rows} rows, {params}, scale {learned.scale} {expected.scale}"
    # The search ends within half a percent of the bound, from below.
    slack = 0.005 if params.max_kl is not None else 1e-6
    assert learned.scale <= expected.scale * (1 + 1e-4), what
    assert learned.scale >= expected.scale * (1 - slack), what
    tolerance = max(2e-3 * params.lr, 2e-5)
    ratio = 1.0 if not expected.scale else float(learned.scale / expected.scale)
    for mine, theirs in ((learned.delta, expected.delta), (learned.bias, expected.bias)):
        if theirs is None or mine is None:
            assert params.target == "hidden" or not learned.losses.numel()
            continue
        assert (mine.double() - ratio * theirs).abs().max() <= tolerance, what
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
    {"optimizer": "sgd", "lr": 3.0},
    {"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.3, "lr_schedule": "linear"},
    {"lr_schedule": "cosine"},
    {"lr_schedule": "linear", "weight_decay": 0.1},
    {"reduction": "mean_over_rows", "eps": 1e-3},
    {"tolerance": 0.3, "steps": 8},
    {"tolerance": 0.02, "steps": 9, "lr": 0.5},
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
    {"target": "bias"},
    {"target": "bias", "optimizer": "sgd", "lr": 5.0},
    {"target": "both", "guard": "holdout", "max_kl": 0.05, "lr": 0.03},
]


def served() -> list[Any]:
    """Each option with each form that serves it, with a soft cap and without."""
    return [
        pytest.param(options, form, cap, id=f"{form.__name__}-{cap}-{_name(options)}")
        for options in OPTIONS
        for form in FORMS
        for cap in (None, 5.0)
        if form is not CachedForm or (cap is None and "target" not in options)
    ]


def _name(options: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize(("options", "form", "cap"), served())
def test_each_option(options: dict[str, Any], form: type[Form], cap: float | None) -> None:
    head = make_head(hidden=32, soft_cap=cap, scale=0.5, bias=True)
    prompts = [
        prompt_of(head, n, seed=n, **{"steps": 5, **options}) for n in (1, 2, 7, 9, 30, 100)
    ]
    for prompt, learned in zip(
        prompts, optimize(head, prompts, Workspace(MIB), final_loss=True, form=form), strict=True
    ):
        assert_equal(head, prompt, learned)
