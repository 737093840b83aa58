"""Whatever ``vllm_xargs`` a client sends, the answer is that of 200 and 400 that is right, and the
server lives on."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from slot_vllm.chat_turns import ROLES
from slot_vllm.params import REQUEST_KEYS, SlotConfig, SlotError, SlotParams, named
from slot_vllm.presets import PRESETS
from slot_vllm.setting import Setting
from tests.engine.server import MODEL, Server
from tests.engine.serving.conftest import LIMITS, LONGEST

PATHS = ("completions", "chat/completions", "responses", "messages")
GROWTH = 1.05
CONFIG = SlotConfig.load(LIMITS, {})
# What vLLM itself lets pass.
_xargs: Any = CompletionRequest.model_fields["vllm_xargs"].annotation
XARGS: TypeAdapter[Any] = TypeAdapter(_xargs)

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


def _choices(name: str) -> Any:
    return st.sampled_from(get_args(SlotParams.model_fields[name].annotation))


valid: dict[str, Any] = {
    f"slot_{name}": st.sampled_from(Setting.of(field).tried)
    for name, field in SlotParams.model_fields.items()
} | {
    "slot_preset": st.sampled_from(list(PRESETS)),
    "slot_steps": st.integers(0, 20),
    "slot_lr": st.one_of(st.floats(0, 1), st.floats(0, 100)),
    "slot_betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    "slot_eps": st.floats(1e-30, 1),
    "slot_weight_decay": st.one_of(st.floats(0, 0.01), st.floats(0, 1)),
    "slot_rounding": _choices("rounding"),
    "slot_reduction": _choices("reduction"),
    "slot_loss_tokens": st.one_of(
        st.sampled_from(("all", "text", *ROLES)),
        st.lists(st.sampled_from(ROLES), min_size=1, max_size=3),
        st.integers(1, 300),
    ),
    "slot_window": st.one_of(st.just("none"), st.integers(1, 300)),
    "slot_half_life": st.one_of(st.just("none"), st.floats(1e-3, 1e6)),
}
assert set(valid) == set(REQUEST_KEYS)
good = st.fixed_dictionaries({}, optional=valid)
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


def _resident(server: Server) -> int:
    """Bytes of the server's processes together."""
    parent = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))


@pytest.mark.parametrize(
    "count",
    [pytest.param(160, id="short"), pytest.param(2400, id="long", marks=pytest.mark.full)],
)
def test_any_settings(count: int, server: Server) -> None:
    warm_up = max(60, count // 6)
    answers: list[int] = []
    refused: list[bool] = []
    resident: list[int] = []
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
        @given(bodies, st.sampled_from(PATHS), st.booleans(), st.integers(0, 9))
        def check(xargs: Any, path: str, stream: bool, tenth: int) -> None:
            long = tenth == 9
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
                resident.append(_resident(server))

        check()
    resident.append(_resident(server))
    fewest = min(served[key] for key in REQUEST_KEYS)
    print(
        f"{len(answers)} bodies: {answers.count(200)} x 200, {answers.count(400)} x 400, "
        f"{sum(refused)} of them because the prompt is long; "
        f"each setting was served {fewest} times or more; "
        f"resident {resident[0] >> 20} MiB after {warm_up}, {resident[1] >> 20} MiB at the end"
    )
    assert len(answers) >= count
    assert min(answers.count(200), answers.count(400)) > count // 10
    assert any(refused)
    assert fewest >= max(1, count // 100)
    assert _other_failures(server) == failures
    assert server.alive()
    assert resident[1] <= GROWTH * resident[0]
