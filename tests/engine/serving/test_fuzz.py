"""Whatever ``vllm_xargs`` a client sends, the answer is that of 200 and 400 that is right, and the
server lives on."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from slot_vllm.params import REQUEST_KEYS, SlotConfig, SlotError, named
from tests.engine.server import MODEL, Server
from tests.engine.serving.conftest import LIMITS, LONGEST, resident
from tests.engine.serving.settings import bodies

PATHS = ("completions", "chat/completions", "responses", "messages")
GROWTH = 1.05
CONFIG = SlotConfig.load(LIMITS, {})
# What vLLM itself lets pass.
_xargs: Any = CompletionRequest.model_fields["vllm_xargs"].annotation
XARGS: TypeAdapter[Any] = TypeAdapter(_xargs)


def _post(
    client: httpx.Client, path: str, xargs: Any, stream: bool, long: bool = False
) -> httpx.Response:
    request: dict[str, Any] = {"model": MODEL, "stream": stream, "vllm_xargs": xargs}
    # A token per character; the engine takes some more than SLOT.
    text = "a" * (LONGEST + 5) if long else "The answer is"
    if path == "completions":
        request |= {"prompt": text, "max_tokens": 1}
    elif path == "responses":
        request |= {"input": text, "max_output_tokens": 16}
    else:
        request |= {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
    # NaN and Infinity go out as such, which no client library would send.
    body = json.dumps(request).encode("utf-8", "surrogatepass")
    return client.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})


def _expected(xargs: Any, path: str, long: bool) -> set[int]:
    """Which status codes are right, told without a server."""
    try:
        XARGS.validate_python(xargs)
        params = CONFIG.resolve(xargs)
    except (ValidationError, SlotError):
        return {400}
    if xargs and "slot" in xargs:
        return {400}
    if any(isinstance(v, int) and not -(2**63) <= v < 2**64 for v in _leaves(xargs)):
        # Not ours, and more than the messages between vLLM's processes carry, which it says late.
        return {200, 400}
    # The prompt of a text completion has no turns, that of a chat a user's.
    by_role = params.words not in (None, "text")
    has_a_turn = path != "completions" and "user" in (params.words or ())
    cannot_be = long or (by_role and not has_a_turn)
    return {400} if cannot_be and params.steps and named(xargs) else {200}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value


def _other_failures(server: Server) -> int:
    """But those of a delta that came out not finite, which a setting may ask for."""
    stats = server.stats()
    return sum(
        count
        for name, count in stats.items()
        if name.startswith("failed.") and name != "failed.non_finite"
    )


@pytest.mark.parametrize(
    "count",
    [pytest.param(50, id="short"), pytest.param(2400, id="long", marks=pytest.mark.full)],
)
def test_any_settings(count: int, server: Server) -> None:
    warm_up = max(30, count // 6)
    answers: list[int] = []
    refused: list[bool] = []
    memory: list[int] = []
    served: Counter[str] = Counter()
    failures = _other_failures(server)

    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:

        @seed(count)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies, st.sampled_from(PATHS), st.booleans(), st.integers(0, 2))
        def check(xargs: Any, path: str, stream: bool, third: int) -> None:
            long = third == 2
            answer = _post(client, path, xargs, stream, long)
            expected = _expected(xargs, path, long)
            assert answer.status_code in expected, (xargs, path, long, answer.text)
            if answer.status_code == 200:
                said = answer.text.replace('"error":null', "")
                assert '"error"' not in said or 400 in expected, answer.text
            else:
                assert answer.json()["error"]["message"]
            answers.append(answer.status_code)
            refused.append("long_prompt" in answer.text)
            if answer.status_code == 200:
                served.update(list(named(xargs)))
            if len(answers) == warm_up:
                memory.append(resident(server))

        check()
    memory.append(resident(server))
    fewest = min(served[key] for key in REQUEST_KEYS)
    print(
        f"{len(answers)} bodies: {answers.count(200)} x 200, {answers.count(400)} x 400, "
        f"{sum(refused)} of them because the prompt is long; "
        f"each setting was served {fewest} times or more; "
        f"resident {memory[0] >> 20} MiB after {warm_up}, {memory[1] >> 20} MiB at the end"
    )
    assert len(answers) >= count
    assert min(answers.count(200), answers.count(400)) > count // 10
    assert any(refused)
    assert fewest >= max(1, count // 100)
    assert _other_failures(server) == failures
    assert server.alive()
    assert memory[1] <= GROWTH * memory[0]
