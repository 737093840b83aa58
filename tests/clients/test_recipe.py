"""Each recipe of docs/serving.md has a test, and says what the others say."""

import re
from pathlib import Path

import pytest

from tests.clients.recipe import CLIENTS, MODEL, QUESTION, STEPS, recipe

OTHERS = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
TESTS = "".join(path.read_text() for path in OTHERS)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_tested(client: str) -> None:
    assert f'"{client}"' in TESTS


@pytest.mark.parametrize("client", ["curl", "openai", "litellm", "LangChain", "inspect_ai"])
def test_a_recipe_asks_with_slot(client: str) -> None:
    kind = "bash" if client == "curl" else "python"
    code = recipe(client, kind, 3)
    assert MODEL in code and QUESTION in code and STEPS not in code
    assert re.findall(r'"slot_steps": (\d)', code) == ["3"]


def test_what_does_not_stand_there_is_an_error() -> None:
    with pytest.raises(AssertionError, match="openai: no 'http://elsewhere'"):
        recipe("openai", "python", 5, ("http://elsewhere", "x"))
