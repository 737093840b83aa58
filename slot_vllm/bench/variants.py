"""What is timed: each variant runs the whole batch once and gives its deltas."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slot_vllm.bench.fused_library import Loss, fused_delta, installed_losses
from slot_vllm.bench.published import published_delta
from slot_vllm.bench.shape import Shape, make_problem
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

OURS = "ours"
PUBLISHED = "published"
# Ours with a softmax in every pass, which every head can have.
PLAIN_FORM = "ours, plain form"

# Ours with one setting or a few that are not the paper's, by name. The times of each are compared
# with those of ``OURS``, which has the paper's.
OPTIONS: dict[str, dict[str, Any]] = {
    "preset=paper-vllm": {"preset": "paper-vllm"},
    "reduction=mean_over_rows": {"reduction": "mean_over_rows"},
    "loss_tokens=16": {"loss_tokens": 16},
    # Of half of the tokens: those of the first turn of two, say.
    "loss_tokens=user": {"loss_tokens": "user"},
}


def settings_of_options() -> dict[str, dict[str, Any]]:
    """What each of ``OPTIONS`` is that the paper's settings are not, presets filled in."""
    return {
        name: SlotParams(**settings).model_dump(mode="json", exclude_defaults=True)
        for name, settings in OPTIONS.items()
    }


# The deltas (B, d) of one run.
Variant = Callable[[], Tensor]


def names(device: str, plain_form: bool = False, options: bool = False) -> list[str]:
    ours = [OURS, *([PLAIN_FORM] if plain_form else []), *(OPTIONS if options else [])]
    return [PUBLISHED, *installed_losses(device), *ours]


def make_variant(name: str, head: Head, prompts: Sequence[Prompt], workspace_mb: int) -> Variant:
    """Allocates what the variant keeps between runs: our workspace."""
    if name in OPTIONS:
        prompts = [
            dataclasses.replace(
                p,
                params=SlotParams(**{"steps": p.params.steps, **OPTIONS[name]}),
                counts=[2 * i < len(p.tokens) for i in range(len(p.tokens))],
            )
            for p in prompts
        ]
    if name in (OURS, PLAIN_FORM, *OPTIONS):
        form = PlainForm if name == PLAIN_FORM else None
        workspace = Workspace(workspace_mb << 20, head.weight.device)
        return lambda: torch.stack([r.delta for r in optimize(head, prompts, workspace, form=form)])
    if name == PUBLISHED:
        return lambda: torch.stack([published_delta(head, p) for p in prompts])
    loss: Loss = installed_losses(head.weight.device.type)[name]
    return lambda: torch.stack([fused_delta(loss, head, p) for p in prompts])


def warm_up(shape: Shape, name: str) -> None:
    """Code, kernels and thread pools come with the first call, whatever its size."""
    small = dataclasses.replace(shape, hidden=64, vocabulary=256, tokens=4, workspace_mb=1)
    head, prompts = make_problem(small)
    make_variant(name, head, prompts, small.workspace_mb)()


def bare_products(head: Head, prompts: Sequence[Prompt]) -> dict[str, Callable[[], Tensor]]:
    """The head product of all rows at once, both ways that torch has."""
    hidden = torch.cat([p.hidden for p in prompts])
    return {
        "mm": lambda: torch.mm(hidden, head.weight.T),
        "linear": lambda: F.linear(hidden, head.weight),
    }
