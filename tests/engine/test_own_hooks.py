"""A vLLM that was patched in part is refused: SLOT would do nothing there, without a word."""

import re
from pathlib import Path

import pytest
import vllm
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from slot_vllm.engine.worker.own_hooks import has_own_hooks
from slot_vllm.engine.worker.runners import V1_CALLS, V2_CALLS
from slot_vllm.params import SlotError
from tests.conftest import ROOT

PATCHES = [pytest.param(p.read_text(), id=p.stem) for p in sorted(ROOT.glob("patches/*.patch"))]


class Hooked:
    def execute_model(self) -> None:
        self.slot_hook.begin_step()  # type: ignore[attr-defined]

    def sample(self) -> None:
        self.slot_hook.before_logits()  # type: ignore[attr-defined]
        self.slot_hook.after_logits()  # type: ignore[attr-defined]


class InPart(Hooked):
    def sample(self) -> None:
        self.slot_hook.before_logits()  # type: ignore[attr-defined]


def test_all_or_none() -> None:
    assert has_own_hooks(Hooked, V2_CALLS)
    assert not has_own_hooks(GPUModelRunner, V1_CALLS)
    with pytest.raises(SlotError, match=r"lacks InPart\.sample: slot_hook\.after_logits\("):
        has_own_hooks(InPart, V2_CALLS)
    with pytest.raises(SlotError, match=r"lacks Hooked\.execute_model: slot_hook\.before_logits"):
        has_own_hooks(Hooked, V1_CALLS)


@pytest.mark.parametrize("patch", PATCHES)
def test_the_patch_makes_every_call_that_is_looked_for(patch: str) -> None:
    for path, calls in (("gpu_model_runner", V1_CALLS), ("gpu/model_runner", V2_CALLS)):
        (part,) = re.findall(
            rf"^diff --git a/vllm/v1/worker/{path}\.py .*?(?=^diff|\Z)", patch, re.M | re.S
        )
        made = re.findall(r"^\+ +self\.(slot_hook\.\w+\()", part, re.M)
        assert sorted(made) == sorted(text for texts in calls.values() for text in texts)


@pytest.mark.parametrize("patch", PATCHES)
def test_it_is_as_small_as_it_is_said_to_be(patch: str) -> None:
    assert len(re.findall(r"^\+(?!\+\+)", patch, re.M)) <= 80
    changed = re.findall(r"^--- a/(\S+)", patch, re.M)
    assert len(changed) == 3
    assert all((Path(vllm.__file__).parents[1] / path).is_file() for path in changed)
