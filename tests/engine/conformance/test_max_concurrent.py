"""With ``max_concurrent`` a step completes so many SLOT prompts and no more, in order of arrival;
the others' answers, and everyone's, stay what they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    random_tokens,
    reference,
)
from tests.engine.engines import runner_of, scheduler_of
from tests.engine.generate import delta_of, run, sampling_params, tokens_of
from tests.engine.runner import V2

NEW = 6
# All prompts of a test fit one step.
ROOMY = {"num_gpu_blocks_override": 200, "max_num_batched_tokens": 320}


@dataclass
class Served:
    """tokens: of each request. first: the step of its first token. steps: whose tokens each had.
    optimized: prompts of each step of the worker."""

    tokens: dict[str, list[int]]
    first: dict[str, int]
    steps: list[set[str]]
    optimized: list[int]


def serve(
    llm: Any,
    arrivals: Mapping[int, Sequence[tuple[str, Case]]],
    aborted: Mapping[int, str] | None = None,
) -> Served:
    """arrivals and aborted: by the number of the step before which they happen."""
    from vllm.sampling_params import RequestOutputKind

    core, state = llm.llm_engine, runner_of(llm).slot_state
    served = Served({}, {}, [], [])
    stage = state.step.stage

    def counted(*args: Any) -> None:
        before = state.statistics.counters["optimized"]
        stage(*args)
        served.optimized.append(state.statistics.counters["optimized"] - before)

    state.step.stage = counted
    step = 0
    while step <= max(arrivals) or core.has_unfinished_requests():
        for name, case in arrivals.get(step, ()):
            params = sampling_params(case, output_kind=RequestOutputKind.DELTA)
            core.add_request(name, {"prompt_token_ids": list(case.tokens)}, params)
        if aborted and step in aborted:
            core.abort_request([aborted[step]])
        served.steps.append(set())
        for output in core.step():
            for part in output.outputs:
                if part.token_ids:
                    served.steps[-1].add(output.request_id)
                    served.first.setdefault(output.request_id, step)
                    served.tokens.setdefault(output.request_id, []).extend(part.token_ids)
        step += 1
        assert step < 500
    del state.step.stage
    return served


def check_tokens(model: str, served: Served, cases: Sequence[tuple[str, Case]]) -> None:
    expected = reference(model, [case for _, case in cases])
    assert_tokens_equal([served.tokens[name] for name, _ in cases], expected)


def named(prefix: str, lengths: Sequence[int], seed: int, steps: int = 3) -> list[tuple[str, Case]]:
    return [
        (f"{prefix}{i}", Case(random_tokens(n, seed + i), steps, 0.1, NEW))
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("limit", [1] if V2 else [1, 2])
def test_running_requests_get_a_token_in_every_step(
    limit: int, tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": limit}, **ROOMY)
    running = [
        ("slot", Case(random_tokens(20, 4000), 5, 0.1, 12)),
        ("plain", Case(random_tokens(30, 4001), 0, 0.1, 12)),
    ]
    burst = named("burst", (60, 33, 64, 40, 20), 4010)
    late = [("late", Case(random_tokens(10, 4020), 0, 0.1, NEW))]
    served = serve(llm, {0: running, 3: burst, 4: late})
    check_tokens(tiny_model, served, [*running, *burst, *late])
    assert max(served.optimized) <= limit
    # All five would fit the first step; they complete in their order.
    assert served.optimized[3:].count(limit) >= 5 // limit
    firsts = [served.first[name] for name, _ in burst]
    assert firsts == [3 + i // limit for i in range(5)]
    assert all({"slot", "plain"} <= step for step in served.steps[3:12])
    # Others pass.
    assert served.first["late"] == 4


@pytest.mark.parametrize("count", [1, 3])
def test_sampling_with_a_seed_from_prompts_that_are_split(
    count: int, tiny_model: str, engine: Callable[..., Any]
) -> None:
    """By the limit, and by vLLM where a prompt is longer than a step: V1 then rewinds the
    generator, which on a CPU ended the engine."""
    llm = engine(tiny_model, slot={"max_concurrent": 1})
    cases = [Case(random_tokens(n, 4300 + n), 3, 0.1, NEW) for n in (5, 6, 130, 110)]
    cases += [replace(cases[2], steps=0), Case(random_tokens(90, 4302), 0, 0.1, NEW)]
    options = {"temperature": 0.8, "seed": 1, "n": count}

    def sampled(cases: Sequence[Case]) -> list[list[list[int]]]:
        outputs = run(llm, cases, **options)
        return [[list(part.token_ids) for part in output.outputs] for output in outputs]

    together = sampled(cases)
    # Now all but the last block is in the prefix cache: a prompt takes one step.
    assert [sampled([case])[0] for case in cases] == together
    assert len({tuple(tokens) for of_case in together for tokens in of_case}) > len(cases) // 2


@pytest.mark.any_runner
def test_equal_prompts_count_once(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, **ROOMY)
    case = Case(random_tokens(40, 4100), 3, 0.1, NEW)
    equal = [(f"equal{i}", case) for i in range(4)]
    others = named("other", (41, 42), 4110)
    arrivals = {0: [others[0], *equal[:2]], 1: [equal[2]], 3: [others[1], equal[3]]}
    served = serve(llm, arrivals)
    check_tokens(tiny_model, served, [*equal, *others])
    # Together, once the one before them is done; the last one while they are alive.
    assert [served.first[name] for name, _ in equal] == [1, 1, 1, 3]
    assert [served.first[name] for name, _ in others] == [0, 3]
    assert served.optimized[:4] == [1, 1, 0, 1]


@pytest.mark.any_runner
def test_without_sharing_every_prompt_counts(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1, "delta_cache_mb": 0}, **ROOMY)
    case = Case(random_tokens(40, 4150), 3, 0.1, NEW)
    served = serve(llm, {0: [("a", case), ("b", case), ("c", case)]})
    assert [served.first[name] for name in "abc"] == [0, 1, 2]
    assert served.optimized[:3] == [1, 1, 1]


@pytest.mark.any_runner
def test_prompts_of_which_all_but_one_token_is_cached(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, **ROOMY)
    # Two blocks and a token.
    cached = named("cached", (65, 65, 65), 4200)
    run(llm, [Case(case.tokens, 0, 0.1, 1) for _, case in cached])
    fresh = named("fresh", (40, 30), 4210)
    plain = named("plain", (25,), 4220, steps=0)
    later = named("later", (35, 36), 4230)
    arrivals = {0: [fresh[0], *cached, fresh[1], *plain], 1: later[:1], 2: later[1:]}
    served = serve(llm, arrivals)
    check_tokens(tiny_model, served, [*fresh, *cached, *plain, *later])
    # They wait in the queue, where those behind them do not overtake them; plain requests pass.
    order = [fresh[0], *cached, fresh[1], *later]
    assert [served.first[name] for name, _ in order] == list(range(7))
    assert served.first["plain0"] == 0


@pytest.mark.any_runner
def test_prompts_that_must_be_computed_whole(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, enable_chunked_prefill=False, **ROOMY)
    scheduler = scheduler_of(llm)
    sizes: dict[str, list[int]] = {}
    update = scheduler._update_after_schedule

    def watched(output: Any) -> None:
        for req_id, tokens in output.num_scheduled_tokens.items():
            sizes.setdefault(req_id.rpartition("-")[0], []).append(tokens)
        update(output)

    monkeypatch.setattr(scheduler, "_update_after_schedule", watched)
    burst = named("burst", (60, 33, 64), 4300)
    plain = named("plain", (30,), 4310, steps=0)
    served = serve(llm, {0: [*burst, *plain]})
    check_tokens(tiny_model, served, [*burst, *plain])
    assert [served.first[name] for name, _ in burst] == [0, 1, 2]
    assert served.first["plain0"] == 0
    assert [sizes[name][0] for name, _ in burst] == [60, 33, 64]


@pytest.mark.any_runner
def test_of_those_that_wait_no_more_are_looked_at_than_can_run(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, enable_chunked_prefill=False, **ROOMY)
    scheduler = scheduler_of(llm)
    handle, update = scheduler._handle_blocked_waiting_request, scheduler._update_after_schedule
    looks: list[int] = [0]

    def looked(request: Any) -> bool:
        looks[-1] += 1
        return bool(handle(request))

    def updated(output: Any) -> None:
        looks.append(0)
        update(output)

    monkeypatch.setattr(scheduler, "_handle_blocked_waiting_request", looked)
    monkeypatch.setattr(scheduler, "_update_after_schedule", updated)
    many = named("many", [7] * 14, 4320)
    plain = named("plain", (9,), 4340, steps=0)
    served = serve(llm, {0: [*many, *plain]})
    check_tokens(tiny_model, served, [*many, *plain])
    assert [served.first[name] for name, _ in many] == list(range(14))
    # The one that runs, and eight that are passed over.
    assert looks[0] == 1 + 8 and max(looks) == 9
    # It passes once it is among the first eight that wait.
    assert served.first["plain0"] == 14 - 8


@pytest.mark.any_runner
def test_prompts_that_end_between_aligned_blocks(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hybrid model's scheduler splits prompts: nothing of these can be computed alone."""
    llm = engine(tiny_model, slot={"max_concurrent": 1}, **ROOMY)
    scheduler = scheduler_of(llm)

    def aligned(request: Any, tokens: int, hit: int = 0, external: int = 0) -> int:
        reached = request.num_computed_tokens + hit + tokens
        return tokens if reached >= request.num_prompt_tokens else tokens // 32 * 32

    monkeypatch.setattr(scheduler, "need_mamba_block_aligned_split", True)
    monkeypatch.setattr(scheduler, "_mamba_block_aligned_split", aligned)
    burst = named("burst", (20, 21, 22), 4350)
    plain = named("plain", (19,), 4360, steps=0)
    served = serve(llm, {0: [*burst, *plain]})
    check_tokens(tiny_model, served, [*burst, *plain])
    assert [served.first[name] for name in ("burst0", "burst1", "burst2")] == [0, 1, 2]
    assert served.first["plain0"] == 0


@pytest.mark.any_runner
def test_a_request_that_cannot_be_described_is_served(
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, **ROOMY)
    cases = named("any", (12, 13), 4370)

    def fails(request: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler_of(llm), "_describe", fails)
        served = serve(llm, {0: cases})
    check_tokens(tiny_model, served, cases)
    assert served.optimized[0] == 2
    # What was logged refers to the request.
    caplog.clear()


@pytest.mark.any_runner
def test_an_aborted_request_leaves_its_place(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, **ROOMY)
    burst = named("burst", (60, 33, 64, 40), 4400)
    served = serve(llm, {0: burst}, aborted={1: "burst1"})
    rest = [one for one in burst if one[0] != "burst1"]
    check_tokens(tiny_model, served, rest)
    assert [served.first[name] for name, _ in rest] == [0, 1, 2]
    assert "burst1" not in served.tokens
    run(llm, [Case(random_tokens(4, seed=1), 0, 0.1, 1)])
    scheduler = scheduler_of(llm)
    assert not scheduler._completing and not scheduler._learned
    assert not scheduler._completed and not scheduler._prompts


def test_preempted_requests_are_not_optimized_again(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 1}, num_gpu_blocks_override=12)
    scheduler = scheduler_of(llm)
    preempted, original = [], scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler._prompt(request).optimized:
            preempted.append(scheduler._to_be_optimized(request))
        return original(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    cases = mixed_cases(16, 34) if V2 else mixed_cases(24, 34)
    served = serve(llm, {0: [(str(i), case) for i, case in enumerate(cases)]})
    check_tokens(tiny_model, served, [(str(i), case) for i, case in enumerate(cases)])
    learning = [case for case in cases if case.steps and len(case.tokens) > 1]
    assert sum(served.optimized) == len(learning)
    assert max(served.optimized) == 1
    assert False in preempted


def test_asynchronous_scheduling(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    check = CpuPlatform.check_and_update_config

    def check_but_keep_asynchronous(_cls: Any, vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    # vLLM turns it off on CPUs, where it is of no use; what the scheduler does is the same.
    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_but_keep_asynchronous)
    )
    llm = engine(tiny_model, slot={"max_concurrent": 1}, async_scheduling=True, **ROOMY)
    assert isinstance(scheduler_of(llm), AsyncScheduler)
    burst = named("burst", (60, 33, 64, 40), 4600)
    served = serve(llm, {0: burst})
    check_tokens(tiny_model, served, burst)
    assert served.optimized[:4] == [1, 1, 1, 1]
    outputs = run(llm, [case for _, case in burst])
    expected = reference(tiny_model, [case for _, case in burst])
    assert_tokens_equal(tokens_of(outputs), expected)
    for (_, case), output, answer in zip(burst, outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, case.lr)


@pytest.mark.skipif(V2, reason="the same for both runners")
@pytest.mark.parametrize(
    "options", [{"scheduling_policy": "priority"}, {"long_prefill_token_threshold": 24}], ids=str
)
def test_other_ways_to_schedule(
    options: dict[str, Any], tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={"max_concurrent": 2}, **options)
    cases = [(str(i), case) for i, case in enumerate(mixed_cases(16, 16))]
    served = serve(llm, {0: cases[:8], 5: cases[8:]})
    check_tokens(tiny_model, served, cases)
    assert max(served.optimized) == 2
