"""The endpoint plugin: off unless named, and what it says of an engine without SLOT."""

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.plugins import load_endpoint_plugins
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from slot_vllm.engine.stats_endpoint import PATH, StatsEndpoint
from tests.engine.test_metrics import EngineClient


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


def test_an_engine_without_slot_says_so() -> None:
    app = FastAPI()
    StatsEndpoint().attach_router(app)
    init_exception_handler(app)
    app.state.engine_client = EngineClient([], extension="")
    app.state.args = SimpleNamespace(log_error_stack=False)
    response = TestClient(app).get(PATH)
    assert response.status_code == 501
    assert "started without SLOT (--worker-extension slot_vllm)" in response.text
