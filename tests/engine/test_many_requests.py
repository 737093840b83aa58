"""Thousands of short requests through one engine leave nothing behind, and each is counted once."""

import gc
import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.frontend.scheduler import LimitedCompletions
from slot_vllm.engine.wire.resolved import BEAM_SEARCH
from slot_vllm.engine.worker import learning
from tests.engine.cases import Case, random_tokens
from tests.engine.engines import runner_of, statuses
from tests.engine.generate import run, sampling_params, stats_of

COUNT = 2000
# Prompts that begin with it fail in the optimizer.
BAD = 255
# Those of a step, however it was.
OF_A_STEP = ("Step._scheduled",)
BOUNDED = ("DeltaCache._free", "DeltaCache._entries", "Failures.errors")
ROOMY = {"max_num_seqs": 32, "max_num_batched_tokens": 128, "num_gpu_blocks_override": 300}


def _prompt(generator: random.Random) -> list[int]:
    if generator.random() < 0.4:
        # One of a few, which come again and again.
        return list(random_tokens(20, seed=generator.randrange(10)))
    # Longer than a step now and then, so that it may be aborted within.
    length = generator.choice((2, 3, 8, 12, 20, 150))
    first = BAD if generator.random() < 0.05 else 2
    return [first] + [generator.randrange(2, BAD) for _ in range(length - 1)]


def _sizes(owner: Any, seen: set[int]) -> dict[str, int]:
    """The lengths of all containers that our objects reach."""
    sizes: dict[str, int] = {}
    for name, value in vars(owner).items():
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict | list | set | deque):
            sizes[f"{type(owner).__name__}.{name}"] = len(value)
        elif type(value).__module__.startswith("slot_vllm.engine"):
            sizes.update(_sizes(value, seen))
    return sizes


def test_nothing_is_left_and_the_counters_agree(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={"keep_deltas": 8, "receipts": 8, "max_concurrent": 4}, **ROOMY)
    core, slot = llm.llm_engine, runner_of(llm).slot_state
    learn, arrive = learning.optimize, slot.registry._arrive
    reached: list[str] = []

    def optimize(head: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if any(int(p.tokens[0]) == BAD for p in prompts):
            raise RuntimeError("injected")
        return learn(head, prompts, *args, **kwargs)

    def watched(new: Any) -> None:
        reached.append(new.req_id.split("-")[0])
        arrive(new)

    monkeypatch.setattr(learning, "optimize", optimize)
    monkeypatch.setattr(slot.registry, "_arrive", watched)
    generator = random.Random(7)

    def load(first: int, last: int) -> int:
        answered = 0
        running: list[str] = []
        # Surely within its prompt.
        case = Case(random_tokens(250, seed=first), 2, 0.1, 1)
        core.add_request(
            f"slot-{first}", {"prompt_token_ids": list(case.tokens)}, sampling_params(case)
        )
        core.step()
        core.abort_request([f"slot-{first}"])
        first += 1
        while first < last or core.has_unfinished_requests():
            for i in range(first, min(last, first + generator.randrange(12))):
                first = i + 1
                kind = generator.choice(("slot", "slot", "slot", "beam", "plain"))
                steps = 0 if kind == "plain" else generator.choice((1, 2, 3))
                case = Case(tuple(_prompt(generator)), steps, 0.1, generator.randrange(1, 4))
                # SLOT from the defaults, which beam search cannot have.
                extra = {} if kind == "beam" else {"slot_steps": steps}
                params = sampling_params(case, extra_args=extra)
                prompt = {"prompt_token_ids": list(case.tokens)}
                with submitting(Origin(BEAM_SEARCH, 1)) if kind == "beam" else nullcontext():
                    core.add_request(f"{kind}-{i}", prompt, params)
                running.append(f"{kind}-{i}")
            if running and generator.random() < 0.3:
                # Waiting, within its prompt, decoding, or gone already.
                core.abort_request([running.pop(generator.randrange(-min(8, len(running)), 0))])
            for output in core.step():
                answered += output.finished
                if output.finished and output.request_id in running:
                    running.remove(output.request_id)
        # Departures reach the worker with the next step.
        run(llm, [Case(random_tokens(4, seed=1), 0, 0.1, 1)])
        reached.remove(next(k for k in reversed(reached) if k.isdecimal()))
        return answered

    load(0, COUNT // 4)
    owners = (slot, core.input_processor.slot_admission)
    shared = len(slot.sharing.cache)
    early = [_sizes(owner, set()) for owner in owners]
    answered = load(COUNT // 4, COUNT)
    late = [_sizes(owner, set()) for owner in owners]

    kinds = Counter(reached)
    stats = stats_of(llm)
    scheduler: Any = core.engine_core.engine_core.scheduler
    outcomes = ("optimized", "shared", "failed", "aborted")
    print(answered, kinds, {name: stats[name] for name in (*outcomes, "bypassed")})
    assert sum(stats[name] for name in outcomes) == kinds["slot"]
    assert stats["bypassed"] == stats["bypassed.beam_search"] == kinds["beam"]
    # Each load ends with a plain request of its own.
    assert stats["plain"] == kinds["plain"] + 2
    # The others were aborted before they reached the worker.
    assert COUNT * 0.8 < kinds.total() <= COUNT
    assert stats["failed"] == stats["failed.optimizer"]
    assert all(stats[name] for name in (*outcomes, "bypassed"))

    assert set(statuses(slot)) <= {"plain"} and not len(slot.table)
    # They forget a request when nothing refers to it any more.
    gc.collect()
    assert isinstance(scheduler, LimitedCompletions)
    assert not len(scheduler._prompts) and not len(scheduler._completed)
    assert not len(scheduler._learned) and not scheduler._completing
    assert (
        len(slot.registry.kept) == len(slot.registry.receipts._finished) == 8
        and len(slot.failures.errors) == 16
    )
    assert slot.buffers.device_bytes == slot.buffers.host_bytes == 0
    # What is bounded may grow until then, and there may be counters that were not there before.
    assert len(slot.sharing.cache) >= shared
    assert len(slot.sharing.cache._free) + len(slot.sharing.cache) == slot.sharing.cache.capacity
    for sizes in (*early, *late):
        for name in (*BOUNDED, *OF_A_STEP, "Statistics.counters"):
            sizes.pop(name, None)
    assert early == late
