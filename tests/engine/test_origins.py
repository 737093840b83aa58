"""A search counts once per prompt, whether its requests are known by their context or by a mark."""

import copy
from typing import Any

import pytest
from vllm import SamplingParams

from slot_vllm.engine import beam_search, native
from slot_vllm.engine.admission import RESOLVED, Admission
from slot_vllm.engine.origins import MARK, submitting
from slot_vllm.params import SlotConfig
from tests.engine.unadmitted import unadmitted


def admitted(admission: Admission, sampling_params: SamplingParams) -> dict[str, Any]:
    request = unadmitted(sampling_params)
    admission.admit(request, "x")
    extra_args: dict[str, Any] = request.sampling_params.extra_args
    return extra_args


@pytest.mark.parametrize("steps", [0, 5])
def test_by_context(steps: int) -> None:
    admission = Admission(SlotConfig(steps=steps))
    with submitting(beam_search.search(2)):
        found = [admitted(admission, SamplingParams())[RESOLVED] for _ in range(5)]
    assert [one["counted"] for one in found] == [True, True, False, False, False]
    assert {one["bypassed"] for one in found} == {"beam_search" if steps else None}
    after = admitted(admission, SamplingParams())[RESOLVED]
    assert after["counted"] and after["bypassed"] is None


def test_by_the_mark_of_a_patched_vllm() -> None:
    admission = Admission(SlotConfig(steps=5))
    shared = SamplingParams(extra_args=native.of_beam_search(1))
    found = [admitted(admission, copy.deepcopy(shared)) for _ in range(3)]
    assert [one[RESOLVED]["counted"] for one in found] == [True, False, False]
    assert {one[RESOLVED]["bypassed"] for one in found} == {"beam_search"}
    # It is an object of this process.
    assert all(MARK not in one for one in found)
    another = SamplingParams(extra_args=native.of_beam_search(1))
    assert admitted(admission, another)[RESOLVED]["counted"]


def test_a_client_s_mark_means_nothing() -> None:
    found = admitted(Admission(SlotConfig(steps=5)), SamplingParams(extra_args={MARK: "x"}))
    assert found[RESOLVED]["bypassed"] is None
    assert found[RESOLVED]["counted"]
