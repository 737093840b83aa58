"""Random schedules: whatever arrives, is aborted, preempted or shares its prefix, each finished
request equals the reference run alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.engine.cases import (
    SETTINGS,
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    random_tokens,
    reference,
)
from tests.engine.engines import runner_of, scheduler_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of
from tests.engine.runner import V2

# Some cross a block's end, which is when a request may find no block and another is preempted.
NEW = 34


def _prefixed_cases(count: int) -> list[Case]:
    """Prompts that share one, two or three blocks, in turn; some end with their prefix."""
    prefix = random_tokens(128, seed=900)
    # All of these can be in the cache already, but for what vLLM always computes again.
    whole_blocks = [Case(prefix[:n], 5, 0.1, NEW) for n in (64, 96, 128)]
    return whole_blocks + [
        Case(
            prefix[: (40, 70, 100)[i % 3]] + random_tokens((0, 9, 31, 70)[i % 4], seed=901 + i),
            *SETTINGS[i % len(SETTINGS)],
            NEW,
        )
        for i in range(count)
    ]


POOL = mixed_cases(8, NEW) + _prefixed_cases(13)
# Learned from the last tokens of long prompts, one prompt per step.
LIMITS = {"max_prompt_tokens": 90, "long_prompts": "last", "max_concurrent": 1}


@dataclass(frozen=True)
class Arrival:
    """case: of the pool. step: when it arrives. aborted_after: so many steps later, if at all."""

    case: int
    step: int
    aborted_after: int | None


@dataclass(frozen=True)
class Schedule:
    """cold: whether it starts with an empty prefix cache. learning: with no deltas to share."""

    arrivals: list[Arrival]
    cold: bool
    learning: bool


schedules = st.builds(
    Schedule,
    st.lists(
        st.builds(
            Arrival,
            st.integers(0, len(POOL) - 1),
            st.integers(0, 12),
            st.one_of(st.none(), st.none(), st.integers(0, 14)),
        ),
        min_size=4,
        max_size=14,
    ),
    st.booleans(),
    # Mostly: what is shared reads no hidden states.
    st.integers(0, 3).map(bool),
)


def _check(llm: Any, model: str, drawn: Schedule, pool: list[Case]) -> None:
    expected = reference(model, pool)
    core = llm.llm_engine
    schedule = drawn.arrivals
    if drawn.cold:
        llm.reset_prefix_cache()
    if drawn.learning:
        llm.collective_rpc("slot_forget_shared")
    finished: dict[str, Any] = {}
    step = 0
    while step <= 12 or core.has_unfinished_requests():
        for i, arrival in enumerate(schedule):
            case = pool[arrival.case]
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
        answer, case = expected[arrival.case], pool[arrival.case]
        assert_tokens_equal([list(output.outputs[0].token_ids)], [answer])
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    run(llm, [pool[0]])
    state = runner_of(llm).slot_state
    assert len(state.registry.with_slot) <= 1  # the last one's departure comes with the next step
    assert state.buffers.device_bytes == 0
    assert not state.failures.errors


# Triton's interpreter is slow: there a run is divided, so that what is left of it can follow. Each
# part begins with Hypothesis' simplest schedule, so that of 11 times 7 schedules 67 are different.
PARTS, LONG = (11, 7) if V2 else (1, 67)


@pytest.fixture(scope="module")
def preemptions() -> Iterator[dict[str, list[tuple[int, list[bool], int]]]]:
    """By chunk and limits: how many schedules, whether each preempted SLOT request had learned by
    then, and how many deltas were shared; of many schedules some are of each kind."""
    found: dict[str, list[tuple[int, list[bool], int]]] = {}
    yield found
    for name, parts in found.items():
        counts, learned, shared = zip(*parts, strict=True)
        if sum(counts) >= 17:
            assert any(learned) and any(shared), name
            # Larger chunks leave hardly a prompt unfinished.
            assert "160" in name or not all(map(all, learned)), name


def _long() -> Iterator[Any]:
    for chunk in (16, 48, 160):
        for part in range(PARTS):
            name = f"long-{chunk}-{part}" if V2 else f"long-{chunk}"
            yield pytest.param(LONG, chunk, {}, 1000 * part, id=name, marks=pytest.mark.full)
        count, name = 17 if V2 else 67, f"long-{chunk}-limits"
        yield pytest.param(count, chunk, LIMITS, 0, id=name, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("count", "chunk", "limits", "first"),
    [
        pytest.param(3 if V2 else 8, 48, {}, 0, id="short"),
        pytest.param(2 if V2 else 8, 160, LIMITS, 0, id="short-limits"),
        *_long(),
    ],
)
def test_random_schedules(
    count: int,
    chunk: int,
    limits: dict[str, Any],
    first: int,
    preemptions: dict[str, list[tuple[int, list[bool], int]]],
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A prompt of 200 tokens and its answer take 8 of the 11 blocks that requests can have.
    llm = engine(tiny_model, slot=limits, max_num_batched_tokens=chunk, num_gpu_blocks_override=12)
    pool = [replace(case, last=limits.get("max_prompt_tokens", 0)) for case in POOL]
    # Whether it had learned by then: what it computed so far is read after it has resumed.
    preempted: list[bool] = []
    scheduler = scheduler_of(llm)
    state = runner_of(llm).slot_state
    stage, optimized = state.step.stage, []
    preempt = scheduler._preempt_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> Any:
        known = state.registry.get(request.request_id)
        if known is not None and known.status != "plain":
            preempted.append(known.status != "prefilling")
        return preempt(request, *args, **kwargs)

    def counting(*args: Any) -> None:
        before = state.statistics.counters["optimized"]
        stage(*args)
        optimized.append(state.statistics.counters["optimized"] - before)

    monkeypatch.setattr(scheduler, "_preempt_request", counted)
    monkeypatch.setattr(state.step, "stage", counting)

    # Other schedules for every chunk and part, the same in every run.
    @seed(first + chunk)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules)
    def check(schedule: Schedule) -> None:
        _check(llm, tiny_model, schedule, pool)

    check()
    stats = stats_of(llm)
    early = preempted.count(False)
    print(
        f"chunk {chunk}, {count} schedules: {len(preempted)} preemptions of SLOT requests, {early} "
        f"of them in a prompt; {stats}"
    )
    assert stats["optimized"] and stats["hidden_rows_cached"]
    assert max(optimized) == 1 if limits else max(optimized) > 1 or count < 8
    kind = f"{chunk}, {sorted(limits)}"
    preemptions.setdefault(kind, []).append((count, preempted, stats["shared"]))
