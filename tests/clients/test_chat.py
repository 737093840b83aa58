"""Clients that ask for one chat, with SLOT and without, against the offline engine's answers."""

import json
from collections.abc import Callable

import pytest

from tests.clients.conftest import MODEL
from tests.clients.recipe import MODEL as PLACE
from tests.clients.recipe import URL, recipe
from tests.engine.server import Server

pytestmark = pytest.mark.full


@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("client", ["openai", "litellm", "LangChain", "inspect_ai"])
def test_a_python_client(
    client: str,
    steps: int,
    server: Server,
    offline: dict[int, str],
    run_client: Callable[..., str],
) -> None:
    code = recipe(client, "python", steps, (URL, server.url), (PLACE, MODEL))
    assert run_client("python", "-c", code) == offline[steps] + "\n"


@pytest.mark.parametrize("steps", [0, 5])
def test_curl(
    steps: int, server: Server, offline: dict[int, str], run_client: Callable[..., str]
) -> None:
    code = recipe("curl", "bash", steps, (URL, server.url), (PLACE, MODEL))
    answer = json.loads(run_client("bash", "-c", code))
    assert answer["choices"][0]["message"]["content"] == offline[steps]
