"""200 requests, 16 at a time, half of them with SLOT, against the offline engine."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.engine.cases import NEAR_TIE, Case, random_tokens
from tests.engine.generate import run
from tests.engine.server import Server, ask_all

REQUESTS, CONCURRENCY, NEW = 200, 16, 16
SETTINGS = ((5, 0.1), (3, 0.5), (10, 0.01), (1, 1.0))


def _cases() -> list[Case]:
    return [
        Case(
            random_tokens(20 + 7 * i % 180, seed=5000 + i),
            *(SETTINGS[i // 2 % len(SETTINGS)] if i % 2 else (0, 0.1)),
            NEW,
        )
        for i in range(REQUESTS)
    ]


def test_load_gives_what_the_offline_engine_gives(
    tiny_model: str, engine: Callable[..., Any], server: Server
) -> None:
    cases = _cases()
    before = server.stats()
    got = asyncio.run(ask_all(server, cases, CONCURRENCY))
    stats = server.stats()
    assert stats["optimized"] - before["optimized"] == REQUESTS / 2
    assert stats["failed"] == before["failed"]
    assert server.metric("vllm:num_preemptions_total") > 0

    offline = run(engine(tiny_model, slot={}, num_gpu_blocks_override=200), cases, logprobs=2)
    ties = 0
    for mine, output in zip(got, offline, strict=True):
        answer = output.outputs[0]
        for token, other, logprobs in zip(mine, answer.token_ids, answer.logprobs, strict=True):
            if token != other:
                second, best = sorted(entry.logprob for entry in logprobs.values())[-2:]
                assert best - second < NEAR_TIE
                ties += 1
                break
    assert ties <= 0.001 * REQUESTS * NEW
