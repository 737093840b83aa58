"""The Triton kernels on a CUDA device; elsewhere Triton's interpreter runs the same checks."""

import pytest
import torch

from slot_vllm.bench.published import published_delta
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt, form_for, optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.kernels.on_device import check_adamw, check_apply_delta, check_passes
from tests.optim.test_optimize import assert_equal_to_oracle, make_head, make_prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("lengths", [[1], [300], [1, 70, 9, 128, 2], [20] * 64])
def test_passes(dtype: torch.dtype, soft_cap: float | None, lengths: list[int]) -> None:
    check_passes("cuda", dtype, soft_cap, lengths, 5003, 896)


def test_a_shard() -> None:
    check_passes("cuda", torch.bfloat16, None, [40, 3], 5003, 256, first_token=5003)


def test_adamw() -> None:
    check_adamw("cuda")


def test_apply_delta() -> None:
    check_apply_delta("cuda")


def test_bf16_is_no_farther_from_the_oracle_than_the_published_loop() -> None:
    here = make_head(vocabulary=3001, dtype=torch.bfloat16)
    head = Head(here.weight.cuda())
    prompt = make_prompt(here, 150, SlotParams())
    prompt = Prompt(prompt.hidden.cuda(), prompt.tokens.cuda(), prompt.params)
    exact = oracle(head, prompt).delta
    (ours,) = optimize(head, [prompt], Workspace(64 << 20, "cuda"))
    theirs = published_delta(head, prompt)
    assert (ours.delta - exact).abs().max() <= (theirs - exact).abs().max()


@pytest.mark.parametrize("soft_cap", [None, 30.0])
@pytest.mark.parametrize("workspace", [64 << 20, 1 << 20])
def test_optimize_equals_the_oracle(soft_cap: float | None, workspace: int) -> None:
    here = make_head(vocabulary=3001, soft_cap=soft_cap)
    head = Head(here.weight.cuda(), None, soft_cap)
    assert form_for(head) is TwoPassForm
    prompts = []
    for steps, length in enumerate([1, 2, 3, 150, 17, 64]):
        prompt = make_prompt(here, length, SlotParams(steps=steps), seed=steps)
        prompts.append(Prompt(prompt.hidden.cuda(), prompt.tokens.cuda(), prompt.params))
    assert_equal_to_oracle(head, prompts, Workspace(workspace, "cuda"))
