"""Whatever ``vllm_xargs`` a client sends, the answer is 200 or 400, and the server lives on."""

import json
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from slot_vllm.params import REQUEST_KEYS
from tests.engine.server import MODEL, Server
from tests.engine.serving.conftest import LONGEST

PATHS = ("completions", "chat/completions", "responses", "messages")
GROWTH = 1.05

numbers = st.one_of(
    st.integers(-5, 25),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
)
leaves = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=20))
values = st.one_of(
    leaves,
    st.lists(numbers, max_size=3),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
keys = st.one_of(
    st.sampled_from(REQUEST_KEYS),
    st.sampled_from(("slot", "slot_", "slot_delta", "SLOT_STEPS", "slot_steps ", "other")),
    st.text(max_size=12),
)
good = st.fixed_dictionaries(
    {},
    optional={
        "slot_steps": st.integers(0, 20),
        "slot_lr": st.floats(0, 100),
        "slot_betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
        "slot_eps": st.floats(1e-30, 1),
        "slot_rounding": st.sampled_from(("exact", "model")),
    },
)
mixed = st.builds(lambda a, b: a | b, good, st.dictionaries(keys, values, max_size=2))
bodies = st.one_of(good, mixed, st.dictionaries(keys, values, max_size=4), values)


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


def _asks_for_steps(xargs: Any) -> bool:
    return isinstance(xargs, dict) and bool(xargs.get("slot_steps"))


def _resident(server: Server) -> int:
    """Bytes of the server's processes together."""
    parent = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))


@pytest.mark.parametrize(
    "count",
    [pytest.param(120, id="short"), pytest.param(2400, id="long", marks=pytest.mark.full)],
)
def test_any_settings(count: int, server: Server) -> None:
    warm_up = max(60, count // 6)
    answers: list[int] = []
    refused: list[bool] = []
    resident: list[int] = []

    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:

        @seed(count)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies, st.sampled_from(PATHS), st.booleans(), st.integers(0, 9))
        def check(xargs: Any, path: str, stream: bool, tenth: int) -> None:
            long = tenth == 9
            answer = _post(client, path, xargs, stream, long)
            assert answer.status_code in (200, 400), answer.text
            if answer.status_code == 200:
                assert '"error"' not in answer.text.replace('"error":null', ""), answer.text
            else:
                assert answer.json()["error"]["message"]
            answers.append(answer.status_code)
            refused.append("long_prompt" in answer.text)
            if long and answer.status_code == 200:
                assert not _asks_for_steps(xargs), answer.text
            if len(answers) == warm_up:
                resident.append(_resident(server))

        check()
    resident.append(_resident(server))
    print(
        f"{len(answers)} bodies: {answers.count(200)} x 200, {answers.count(400)} x 400, "
        f"{sum(refused)} of them because the prompt is long; "
        f"resident {resident[0] >> 20} MiB after {warm_up}, {resident[1] >> 20} MiB at the end"
    )
    assert len(answers) >= count
    assert min(answers.count(200), answers.count(400)) > count // 10
    assert any(refused)
    assert server.alive()
    assert resident[1] <= GROWTH * resident[0]
