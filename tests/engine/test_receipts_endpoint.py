"""``GET /slot/requests/{id}``: whose receipts it gives, and what it says where there are none."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from slot_vllm import __version__
from slot_vllm.engine.frontend import batched_rpc
from slot_vllm.params import SlotConfig
from tests.engine.test_metrics import EngineClient
from tests.engine.test_stats_endpoint import app_of
from tests.engine.test_step import TOKENS, RunnerState, arrival, begin, make_state, step


def client_of(engines: list[list[Any]], receipts: int) -> Any:
    client = EngineClient(engines)
    client.vllm_config.additional_config = {
        "slot": SlotConfig(receipts=receipts).model_dump(mode="json"),
        "slot_checked": __version__,
    }
    return TestClient(app_of(client))


def worker(state: RunnerState) -> Any:
    return {"receipts": state.receipts_of}


def serve(state: RunnerState, *prompts: str) -> None:
    """The prompts of one body, by the names that a server gives to them."""
    new = [arrival(f"{i}-1", TOKENS[i:]) for i in range(len(prompts))]
    for one, name in zip(new, prompts, strict=True):
        one.sampling_params.extra_args["slot"]["request_id"] = name
    begin(state, new)
    step(state, *((one.req_id, one.prompt_token_ids, 0) for one in new))
    begin(state, finished={one.req_id for one in new})


def test_the_prompts_of_a_body_may_be_in_several_engines() -> None:
    first, second = make_state(receipts=4), make_state(receipts=4)
    serve(first, "cmpl-a-0", "cmpl-a-2", "chatcmpl-a")
    serve(second, "cmpl-a-1")
    # Each rank of an engine has all receipts.
    http = client_of([[worker(first)] * 2, [worker(second)]], 4)
    answer = http.get("/slot/requests/cmpl-a")
    assert answer.status_code == 200, answer.text
    receipts = answer.json()["receipts"]
    assert [r["request_id"] for r in receipts] == ["cmpl-a-0", "cmpl-a-1", "cmpl-a-2"]
    assert [r["tokens"] for r in receipts] == [7, 7, 6]
    (chat,) = http.get("/slot/requests/chatcmpl-a").json()["receipts"]
    assert chat["outcome"] == "applied" and chat["loss_before"] > 0


@pytest.mark.parametrize("name", ["cmpl-b", "cmpl", "cmpl-", "chatcmpl", "%2e%2a", "a" * 4000])
def test_an_id_that_nobody_has(name: str) -> None:
    state = make_state(receipts=4)
    serve(state, "cmpl-a-0", "chatcmpl-a")
    answer = client_of([[worker(state)]], 4).get(f"/slot/requests/{name}")
    assert answer.status_code == 404
    for part in ("no response has this id", "not complete", "15 minutes or 4 requests ago"):
        assert part in answer.text
    assert len(answer.text) < 600


@pytest.mark.parametrize("path", ["/slot/requests", "/slot/requests/"])
def test_no_route_lists_them(path: str) -> None:
    state = make_state(receipts=4)
    serve(state, "cmpl-a-0")
    answer = client_of([[worker(state)]], 4).get(path)
    assert answer.status_code == 404 and "cmpl" not in answer.text


def test_an_engine_that_keeps_none_says_how_to_keep_them() -> None:
    answer = client_of([[worker(make_state())]], 0).get("/slot/requests/cmpl-a")
    assert answer.status_code == 404
    assert "keeps no receipts" in answer.text and "--additional-config" in answer.text


def test_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_rpc, "ANSWER_SECONDS", 0.01)
    http = client_of([], 4)

    async def silent(*_: Any) -> Any:
        await asyncio.sleep(60)

    http.app.state.engine_client.call_utility_all_async = silent
    answer = http.get("/slot/requests/cmpl-a")
    assert answer.status_code == 503 and "no answer within" in answer.text
