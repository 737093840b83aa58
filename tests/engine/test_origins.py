"""A search counts once per prompt; its requests are known by their context."""

from typing import Any

import pytest
from vllm import SamplingParams

from slot_vllm.engine.frontend.admission import Admission
from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.wire.resolved import BEAM_SEARCH, RESOLVED
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
    with submitting(Origin(BEAM_SEARCH, 2)):
        found = [admitted(admission, SamplingParams())[RESOLVED] for _ in range(5)]
    assert [one["counted"] for one in found] == [True, True, False, False, False]
    assert {one["bypassed"] for one in found} == {"beam_search" if steps else None}
    after = admitted(admission, SamplingParams())[RESOLVED]
    assert after["counted"] and after["bypassed"] is None
