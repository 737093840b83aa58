"""Whatever a client sends to whichever of the server's routes, the answer is 200 or a 4xx with a
message, or what the same server says without SLOT, and the server lives on."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from slot_vllm.params import REQUEST_PREFIX
from tests.conftest import starts
from tests.engine.cases import Case, assert_tokens_equal, reference
from tests.engine.server import MODEL, Server, serving
from tests.engine.serving.conftest import BYSTANDERS, ENVIRONMENT, OPTIONS, resident
from tests.engine.serving.routes import Call, Routes, status

# What vLLM itself answers with a 5xx: on which path, what was sent, what it says, and why. The long
# test asks a server without SLOT, too.
VLLMS_OWN = (
    (
        "/v1/systemone",
        "",
        "The model does not support the structured decision API",
        "501 for models that vLLM has no way to read decisions from, such as a Qwen2",
    ),
    (
        ".*",
        r"\\ud83d",
        '"message":""',
        "500 for half a surrogate pair (an id, bad words): the engine cannot be sent it",
    ),
    (
        "/abort_requests",
        "",
        "surrogates not allowed",
        "500 where all are to be aborted and such a request came before: it is still listed",
    ),
    (
        "/inference/v1/abort_requests",
        r"^[^{]",
        "object has no attribute 'get'",
        "500 for a body that is no object",
    ),
)
# SLOT's own: a server without SLOT has nothing to say there.
OWN = "/slot/"
# Of which path there is a route, whatever vLLM's release: SLOT's own and those that take settings.
ANSWER = {
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"),
    *("/inference/v1/generate", "/invocations"),
}
AT_LEAST = {*ANSWER, "/slot/stats", "/slot/requests/{response_id}"}
# Of more, hypothesis makes many that are nearly the same.
BATCH = 8
# Of calls that the long test makes at least.
LONG = 2000
GROWTH = 1.05


@pytest.fixture(scope="module")
@starts
def plain(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same server without SLOT, but that it reads any of the prompts in one step: of a seed and
    a prompt that it splits, its engine dies on a CPU."""
    log = tmp_path_factory.mktemp("plain") / "log"
    options = (*OPTIONS, "--max-num-batched-tokens", "4096")
    with serving(tiny_model, None, log, *options, environment=ENVIRONMENT) as server:
        yield server


def _names_slot(call: Call) -> bool:
    return REQUEST_PREFIX in json.dumps(call.content)


def _vllms_own(call: Call, answer: httpx.Response) -> bool:
    sent = (call.body or b"").decode("utf-8", "replace")
    return any(
        re.fullmatch(path, call.path) and re.search(part, sent) and re.search(said, answer.text)
        for path, part, said, _ in VLLMS_OWN
    )


def _message(answer: httpx.Response) -> Any:
    said = answer.json()
    error = said.get("error") or said.get("detail")
    return error.get("message") if isinstance(error, dict) else error


@pytest.mark.parametrize(
    "each",
    [pytest.param(2, id="short"), pytest.param(80, id="long", marks=pytest.mark.full)],
)
def test_any_call(each: int, server: Server, request: pytest.FixtureRequest) -> None:
    """each: how many calls of every route that takes something; what takes nothing is called once,
    in the long test."""
    other = request.getfixturevalue("plain") if each > BATCH else None
    routes = Routes(server)
    assert {route.path for route in routes.all} >= AT_LEAST
    tried = routes.all if other else [route for route in routes.all if route.takes]
    answers: Counter[int] = Counter()
    excused: Counter[str] = Counter()
    served: Counter[str] = Counter()
    wrong: list[tuple[Any, ...]] = []
    memory: list[int] = []
    options: dict[str, Any] = {
        "timeout": 120,
        "trust_env": False,
        # After a 500 uvicorn closes the connection, perhaps while the next call is being sent.
        "limits": httpx.Limits(max_keepalive_connections=0),
    }

    with (
        httpx.Client(base_url=server.url, **options) as client,
        httpx.Client(base_url=other.url if other else "", **options) as without,
    ):

        def check(call: Call) -> None:
            answer = call.send(client)
            code = status(answer)
            alike = not call.path.startswith(OWN) and (code >= 500 or not _names_slot(call))
            if other is not None and alike:
                expected = call.send(without)
                if code != status(expected):
                    wrong.append(("not as without SLOT", call, answer.text, expected.text))
            if code >= 500:
                excused[call.route] += 1
                if not _vllms_own(call, answer):
                    wrong.append((str(code), call, answer.text))
            elif answer.status_code >= 400 and not _message(answer):
                wrong.append(("no message", call, answer.text))
            answers[code // 100] += 1
            if code < 300 and _names_slot(call):
                served[call.route] += 1

        for part in range(0, each, BATCH):
            for route in tried:
                if part == 0 or route.takes:
                    number = min(BATCH, each - part) if route.takes else 1
                    run = settings(
                        max_examples=number,
                        deadline=None,
                        database=None,
                        phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    )
                    seed(f"{route} {part}")(run(given(routes.calls_of(route))(check)))()
            if part in (0, each // 3 // BATCH * BATCH):
                memory.append(resident(server))
    memory.append(resident(server))
    print(
        f"{sum(answers.values())} calls of {len(tried)} routes: {answers[2]} x 2xx "
        f"({served.total()} of them name settings), {answers[4]} x 4xx, {answers[5]} x 5xx, as "
        f"without SLOT ({', '.join(excused)}); left out: {', '.join(sorted(routes.left_out))}; "
        f"resident {memory[-2] >> 20} MiB after a third, {memory[-1] >> 20} MiB at the end"
    )
    assert not wrong, "\n".join(map(str, wrong))
    assert other is None or sum(answers.values()) >= LONG
    assert min(answers[2], answers[4]) > sum(answers.values()) // 5
    # Each of them served SLOT.
    assert served.keys() >= ANSWER or other is None, served
    assert server.alive()
    assert memory[-1] <= GROWTH * memory[-2]


def test_tokens_in_tokens_out(tiny_model: str, server: Server) -> None:
    """``/inference/v1/generate`` takes settings where it takes vLLM's sampling parameters."""

    def ask(case: Case, **beside: Any) -> httpx.Response:
        sampling: dict[str, Any] = {"temperature": 0, "max_tokens": case.new_tokens}
        sampling["extra_args"] = {"slot_steps": case.steps, "slot_lr": case.lr}
        sampling["ignore_eos"] = True
        sent = {"model": MODEL, "token_ids": list(case.tokens), "sampling_params": sampling}
        url = f"{server.url}/inference/v1/generate"
        return httpx.post(url, json={**sent, **beside}, timeout=60, trust_env=False)

    answers = [ask(case).raise_for_status().json() for case in BYSTANDERS]
    got = [answer["choices"][0]["token_ids"] for answer in answers]
    assert_tokens_equal(got, reference(tiny_model, BYSTANDERS))
    bad = {"temperature": 0, "max_tokens": 1, "extra_args": {"slot_steps": True}}
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"slot_steps": 1}, "slot_steps: settings of SLOT stand in sampling_params.extra_args"),
        ({"vllm_xargs": {"slot_steps": 1}}, "slot_steps: settings of SLOT stand in sampling_par"),
        ({"sampling_params": bad}, "slot_steps=True: an integer is required"),
    )
    for beside, said in refused:
        for stream in (False, True):
            answer = ask(BYSTANDERS[0], stream=stream, **beside)
            assert answer.status_code == 400
            assert said in answer.text
