"""Random schedules: whatever arrives, is aborted or preempted, each finished request equals the
reference run alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.cases import assert_delta_equal, assert_tokens_equal, mixed_cases, reference
from tests.engine.conftest import V2, runner_of
from tests.engine.generate import delta_of, run, sampling_params

POOL = mixed_cases(16, 12)


@dataclass(frozen=True)
class Arrival:
    """case: of the pool. step: when it arrives. aborted_after: so many steps later, if at all."""

    case: int
    step: int
    aborted_after: int | None


schedules = st.lists(
    st.builds(
        Arrival,
        st.integers(0, len(POOL) - 1),
        st.integers(0, 12),
        st.one_of(st.none(), st.none(), st.integers(0, 14)),
    ),
    min_size=1,
    max_size=10,
)


def _check(llm: Any, model: str, schedule: list[Arrival]) -> None:
    expected = reference(model, POOL)
    core = llm.llm_engine
    finished: dict[str, Any] = {}
    step = 0
    while step <= 12 or core.has_unfinished_requests():
        for i, arrival in enumerate(schedule):
            case = POOL[arrival.case]
            if arrival.step == step:
                prompt = {"prompt_token_ids": list(case.tokens)}
                core.add_request(f"{id(schedule)}-{i}", prompt, sampling_params(case))
            if arrival.aborted_after is not None and arrival.step + arrival.aborted_after == step:
                core.abort_request([f"{id(schedule)}-{i}"])
        for output in core.step():
            if output.finished:
                finished[output.request_id] = output
        step += 1
    for i, arrival in enumerate(schedule):
        output = finished.get(f"{id(schedule)}-{i}")
        if output is None or output.outputs[0].finish_reason == "abort":
            assert arrival.aborted_after is not None
            continue
        answer, case = expected[arrival.case], POOL[arrival.case]
        assert_tokens_equal([list(output.outputs[0].token_ids)], [answer])
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    run(llm, [POOL[0]])
    deltas = runner_of(llm).slot_deltas
    assert len(deltas.requests) <= 1  # the last one's departure comes with the next step
    assert deltas.pending.device_bytes == 0
    assert not deltas.errors


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(2 if V2 else 8, id="short"),
        pytest.param(20 if V2 else 200, id="long", marks=pytest.mark.full),
    ],
)
def test_random_schedules(count: int, tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules)
    def check(schedule: list[Arrival]) -> None:
        _check(llm, tiny_model, schedule)

    check()
