"""The recipes of docs/serving.md, as they stand there."""

import re

from tests.conftest import ROOT

URL = "http://localhost:8000"
MODEL = "Qwen/Qwen2.5-7B-Instruct"
STEPS = '"slot_steps": 5'
QUESTION = "How many primes are below 100?"
_PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("## Clients")[2]
_SECTIONS = dict(re.findall(r"^### (.+)\n((?:(?!^###).*\n)*)", _PAGE, re.M))
CLIENTS = tuple(_SECTIONS)


def recipe(client: str, kind: str, steps: int, *changes: tuple[str, str]) -> str:
    """The block of code of a client in the language ``kind``, which asks with ``steps`` steps.
    changes: what stands there, and what a test needs in its place; each must stand there."""
    [code] = re.findall(rf"^```{kind}\n(.*?)^```$", _SECTIONS[client], re.M | re.S)
    for old, new in changes:
        assert old in code, f"{client}: no {old!r} in {code}"
        code = code.replace(old, new)
    return code.replace(STEPS, STEPS.replace("5", str(steps)))


def question() -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION}]
