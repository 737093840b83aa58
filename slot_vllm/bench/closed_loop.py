"""A closed loop of requests through an engine: each that finishes is followed by the next."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind


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


@dataclass(frozen=True)
class Loop:
    """seconds: from the first request's start to the last one's end."""

    served: list[Served]
    seconds: float


def greedy(output_tokens: int, slot: dict[str, Any]) -> SamplingParams:
    """Of a request with so many tokens. slot: its own SLOT settings."""
    return SamplingParams(
        temperature=0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=slot,
    )


def closed_loop(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    concurrency: int,
    slot: dict[str, Any],
) -> Loop:
    """Serves each prompt (token ids) with ``output_tokens`` greedy tokens; ``concurrency`` of them
    are in the engine until none waits. slot: the requests' own SLOT settings.

    Raises RuntimeError if a request ends with another number of tokens.
    """
    engine = llm.llm_engine
    waiting = deque(enumerate(llm.renderer.render_cmpl([{"prompt_token_ids": p} for p in prompts])))
    params = greedy(output_tokens, slot)
    running: dict[str, Served] = {}
    finished: list[Served] = []
    began = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < concurrency:
            index, prompt = waiting.popleft()
            running[str(index)] = Served(time.perf_counter())
            engine.add_request(str(index), prompt, params)
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            one = running[output.request_id]
            if count := sum(len(part.token_ids) for part in output.outputs):
                one.outputs.append(now)
                one.tokens += count
            if output.finished:
                if one.tokens != output_tokens:
                    raise RuntimeError(
                        f"request {output.request_id} ended with {one.tokens} tokens instead of "
                        f"{output_tokens}: {output.outputs[0].finish_reason}"
                    )
                finished.append(running.pop(output.request_id))
    return Loop(finished, time.perf_counter() - began)
