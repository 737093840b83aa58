"""What a real server says that SLOT did to a response, by the id that the response shows."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.server import MODEL, Server

CHAT = [{"role": "user", "content": "The answer is"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "The answer is", "max_tokens": 2},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 2},
    "/v1/responses": {"input": "The answer is", "max_output_tokens": 2},
    "/v1/messages": {"messages": CHAT, "max_tokens": 2},
    "/inference/v1/generate": {"token_ids": [1, 2, 3, 4, 5]},
}


def _ask(server: Server, path: str, steps: int, stream: bool) -> str:
    """The id that the answer shows, whole or in the first event that has one."""
    body = {"model": MODEL, "stream": stream, **ASKED[path]}
    # Deltas of equal prompts and settings are shared.
    lr = 0.1 + 0.01 * [*ASKED].index(path) + 0.1 * stream
    settings = {"slot_steps": steps, "slot_lr": lr}
    if path == "/inference/v1/generate":
        body["sampling_params"] = {"max_tokens": 2, "extra_args": settings}
    else:
        body["vllm_xargs"] = settings
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    for event in [json.loads(line) for line in lines if line.startswith("{")]:
        shown = event.get("response") or event.get("message") or event
        if found := shown.get("id") or shown.get("request_id"):
            return str(found)
    raise AssertionError(answer.text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
def test_by_the_id_of_a_response(path: str, stream: bool, server: Server) -> None:
    for steps, outcome in ((3, "applied"), (0, "plain")):
        shown = _ask(server, path, steps, stream)
        url = f"{server.url}/slot/requests/{shown}"
        answer = httpx.get(url, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        (receipt,) = answer.json()["receipts"]
        assert (receipt["outcome"], receipt["steps"]) == (outcome, steps or None)
        if steps:
            assert receipt["loss_after"] < receipt["loss_before"]
