"""Running requests, among which a burst of prompts arrives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

# Tokens of every running request before the burst.
_BEFORE = 8


@dataclass
class Served:
    """One request. Seconds, as its client sees them: when the engine got it, and when each output
    came."""

    began: float
    outputs: list[float] = field(default_factory=list)
    tokens: int = 0


def serve_burst(
    llm: LLM,
    running: Sequence[Sequence[int]],
    burst: Sequence[Sequence[int]],
    window: int,
    most_tokens: int,
    slot: dict[str, Any],
) -> dict[str, float]:
    """The figures of one round. Serves the prompts (token ids) of ``running`` until each has a few
    tokens, then those of ``burst`` together, and ends all once each running request has ``window``
    tokens more. most_tokens: of any request. slot: the requests' own SLOT settings.

    Raises RuntimeError if a request ends before, or one of the burst has no token by then.
    """
    engine = llm.llm_engine
    served: dict[str, Served] = {}
    greedy = SamplingParams(
        temperature=0,
        max_tokens=most_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=slot,
    )

    def add(kind: str, prompts: Sequence[Sequence[int]]) -> list[str]:
        rendered = llm.renderer.render_cmpl([{"prompt_token_ids": list(p)} for p in prompts])
        names = [f"{kind}-{i}" for i in range(len(rendered))]
        for name, prompt in zip(names, rendered, strict=True):
            served[name] = Served(time.perf_counter())
            engine.add_request(name, prompt, greedy)
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

    runners = add("running", running)
    step_until(runners, _BEFORE)
    arrived = time.perf_counter()
    arrivals = add("burst", burst)
    step_until(runners, max(served[name].tokens for name in runners) + window)
    if any(not served[name].outputs for name in arrivals):
        raise RuntimeError("the burst takes longer than the window; --window must be larger")
    engine.abort_request(list(served))
    while engine.has_unfinished_requests():
        engine.step()
    own, arriving = ([served[name] for name in names] for names in (runners, arrivals))
    return burst_figures(own, arriving, arrived, window)


def burst_figures(
    running: Sequence[Served], burst: Sequence[Served], arrived: float, window: int
) -> dict[str, float]:
    """Seconds. before_p50: the running requests' inter-token latency until the burst, which came at
    ``arrived``. itl: the same of each one's ``window`` tokens after that. ttft: time to first token
    of the burst."""
    before, during = [], []
    for one in running:
        latencies = np.diff(one.outputs).tolist()
        came = sum(second <= arrived for second in one.outputs)
        before += latencies[: came - 1]
        during += latencies[came - 1 :][:window]
    first = [one.outputs[0] - one.began for one in burst]
    p50, p99 = np.percentile(during, (50, 99))
    return {
        "before_p50": float(np.median(before)),
        "itl_p50": float(p50),
        "itl_p99": float(p99),
        "itl_max": max(during),
        "ttft_p50": float(np.median(first)),
        "ttft_max": max(first),
    }
