"""Running requests, among which a burst of prompts arrives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel
from vllm import LLM

from slot_vllm.bench.closed_loop import Served, greedy

# Tokens of every running request before the burst.
_BEFORE = 8


class BurstFigures(BaseModel):
    """Of one arm in one round; seconds. before_p50: the running requests' inter-token latency until
    the burst. itl: the same from the burst's arrival to the first token of its last prompt. ttft:
    time to first token of the burst."""

    before_p50: float
    itl_p50: float
    itl_p99: float
    itl_max: float
    ttft_p50: float
    ttft_max: float


@dataclass(frozen=True)
class Burst:
    """arrived: when the burst did."""

    running: list[Served]
    burst: list[Served]
    arrived: float


def serve_burst(
    llm: LLM,
    running: Sequence[Sequence[int]],
    burst: Sequence[Sequence[int]],
    most_tokens: int,
    slot: dict[str, Any],
) -> Burst:
    """Serves the prompts (token ids) of ``running`` until each has a few tokens, then those of
    ``burst`` together, and ends all once each of these has its first. most_tokens: of a running
    request. slot: the requests' own SLOT settings.

    Raises RuntimeError if a running request ends before the burst has been served.
    """
    engine = llm.llm_engine
    served: dict[str, Served] = {}

    def add(kind: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
        rendered = llm.renderer.render_cmpl([{"prompt_token_ids": list(p)} for p in prompts])
        names = [f"{kind}-{i}" for i in range(len(rendered))]
        for name, prompt in zip(names, rendered, strict=True):
            served[name] = Served(time.perf_counter())
            engine.add_request(name, prompt, greedy(tokens, slot))
        return names

    def step_until(names: Sequence[str], tokens: int) -> None:
        while any(served[name].tokens < tokens for name in names):
            outputs = engine.step()
            now = time.perf_counter()
            for output in outputs:
                one = served[output.request_id]
                if count := sum(len(part.token_ids) for part in output.outputs):
                    one.outputs.append(now)
                    one.tokens += count
                if output.finished and output.request_id in runners:
                    raise RuntimeError(
                        f"a running request ended after {one.tokens} tokens, before the burst "
                        "was served; --running-output must be larger"
                    )

    runners = add("running", running, most_tokens)
    step_until(runners, _BEFORE)
    arrived = time.perf_counter()
    arrivals = add("burst", burst, most_tokens)
    step_until(arrivals, 1)
    engine.abort_request(list(served))
    while engine.has_unfinished_requests():
        engine.step()
    return Burst([served[name] for name in runners], [served[name] for name in arrivals], arrived)


def burst_figures(found: Burst) -> BurstFigures:
    before: list[float] = []
    during: list[float] = []
    for one in found.running:
        for earlier, later in zip(one.outputs, one.outputs[1:], strict=False):
            # The step in which the burst arrives is the first that can be late.
            (before if later <= found.arrived else during).append(later - earlier)
    first = [one.first_token_seconds for one in found.burst]
    p50, p99 = np.percentile(during, (50, 99))
    return BurstFigures(
        before_p50=float(np.median(before)),
        itl_p50=p50,
        itl_p99=p99,
        itl_max=max(during),
        ttft_p50=float(np.median(first)),
        ttft_max=max(first),
    )
