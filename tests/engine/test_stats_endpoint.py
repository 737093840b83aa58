"""The endpoint plugin: off unless named, and what it says of an engine without SLOT."""

import asyncio
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.plugins import load_endpoint_plugins
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from slot_vllm.engine.frontend.stats_endpoint import PATH, StatsEndpoint
from tests.engine.test_metrics import EngineClient, worker
from tests.engine.test_step import TOKENS, arrival, begin, make_state, step


@pytest.mark.parametrize(
    ("plugins", "tasks", "loaded"),
    [
        (None, ("generate",), []),
        ("slot_vllm", ("generate",), []),
        ("slot_vllm,slot_stats", ("generate",), [StatsEndpoint]),
        ("slot_vllm,slot_stats", ("embed",), []),
    ],
)
def test_it_is_opt_in(
    plugins: str | None, tasks: Any, loaded: list[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    if plugins is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
    found = load_endpoint_plugins(tasks)
    assert [type(plugin) for plugin in found] == loaded
    assert all(isinstance(plugin, EndpointPlugin) for plugin in found)


def app_of(client: EngineClient) -> FastAPI:
    plugin, app = StatsEndpoint(), FastAPI()
    plugin.attach_router(app)
    init_exception_handler(app)
    app.state.engine_client = client
    app.state.args = SimpleNamespace(log_error_stack=False)
    asyncio.run(plugin.init_state(client, app.state, Namespace()))
    return app


@pytest.mark.parametrize("path", [PATH, "/slot/requests/cmpl-a"])
def test_an_engine_without_slot_says_so(path: str) -> None:
    response = TestClient(app_of(EngineClient([], extension=""))).get(path)
    assert response.status_code == 501
    assert "started without SLOT (--worker-extension slot_vllm)" in response.text


def test_every_worker_of_every_engine() -> None:
    first, second = make_state(), make_state()
    begin(second, [arrival("a-1", TOKENS)])
    step(second, ("a-1", TOKENS, 0))
    app = app_of(EngineClient([[worker(first)], [worker(second)] * 2]))
    workers = TestClient(app).get(PATH).json()["workers"]
    assert [(w["engine"], w["optimized"]) for w in workers] == [(0, 0), (1, 1), (1, 1)]
