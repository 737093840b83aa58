"""Running requests, among which a burst of prompts arrives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

# Tokens of every running request before the burst.
_BEFORE = 8


@dataclass
class Served:
    """One request. Seconds, as its client sees them: from handing it to the engine to the first
    token, and between each output and the next."""

    began: float
    outputs: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def first_token_seconds(self) -> float:
        return self.outputs[0] - self.began

    @property
    def inter_token_seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.outputs, self.outputs[1:], strict=False)]


class BurstFigures(BaseModel):
    """Of one arm in one round; seconds. before_p50: the running requests' inter-token latency until
    the burst. itl: the same of their tokens after the burst's arrival. ttft: time to first token of
    the burst."""

    before_p50: float
    itl_p50: float
    itl_p99: float
    itl_max: float
    ttft_p50: float
    ttft_max: float


class Spread(BaseModel):
    """Over the rounds."""

    median: float
    lowest: float
    highest: float


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
    window: int,
    most_tokens: int,
    slot: dict[str, Any],
) -> Burst:
    """Serves the prompts (token ids) of ``running`` until each has a few tokens, then those of
    ``burst`` together, and ends all once each running request has ``window`` tokens more.
    most_tokens: of any request. slot: the requests' own SLOT settings.

    Raises RuntimeError if a request ends before, or one of the burst has no token by then.
    """
    engine = llm.llm_engine
    served: dict[str, Served] = {}

    def add(kind: str, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
        rendered = llm.renderer.render_cmpl([{"prompt_token_ids": list(p)} for p in prompts])
        names = [f"{kind}-{i}" for i in range(len(rendered))]
        for name, prompt in zip(names, rendered, strict=True):
            served[name] = Served(time.perf_counter())
            engine.add_request(name, prompt, _greedy(tokens, slot))
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
                if output.finished:
                    raise RuntimeError(
                        f"request {output.request_id} ended after {one.tokens} tokens, within the "
                        "window; --output-tokens must be larger"
                    )

    runners = add("running", running, most_tokens)
    step_until(runners, _BEFORE)
    arrived = time.perf_counter()
    arrivals = add("burst", burst, most_tokens)
    step_until(runners, max(served[name].tokens for name in runners) + window)
    if any(not served[name].outputs for name in arrivals):
        raise RuntimeError("the burst takes longer than the window; --window must be larger")
    engine.abort_request(list(served))
    while engine.has_unfinished_requests():
        engine.step()
    return Burst([served[name] for name in runners], [served[name] for name in arrivals], arrived)


def burst_figures(found: Burst, window: int) -> BurstFigures:
    """window: so many of each running request's tokens after the burst's arrival count."""
    before, during = [], []
    for one in found.running:
        came = sum(second <= found.arrived for second in one.outputs)
        before += one.inter_token_seconds[: came - 1]
        during += one.inter_token_seconds[came - 1 :][:window]
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


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=float(np.median(values)), lowest=min(values), highest=max(values))


def _greedy(output_tokens: int, slot: dict[str, Any]) -> SamplingParams:
    return SamplingParams(
        temperature=0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=slot,
    )
