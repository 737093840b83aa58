"""vLLM's own ``bench serve`` and ``run-batch``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import LENGTH, MODEL
from tests.clients.recipe import MODEL as PLACE
from tests.clients.recipe import QUESTION, URL, recipe
from tests.engine.server import Server

pytestmark = pytest.mark.full


@pytest.mark.parametrize("steps", [0, 5])
def test_bench_serve(
    steps: int,
    server: Server,
    offline: dict[int, str],
    folder: Path,
    run_vllm: Callable[..., str],
) -> None:
    (folder / "questions.jsonl").write_text(json.dumps({"prompt": QUESTION}))
    code = recipe("vllm bench serve", "bash", steps, (URL, server.url), (PLACE, MODEL))
    run_vllm("bash", "-c", code)
    [result] = folder.glob("*.json")
    assert json.loads(result.read_text())["generated_texts"] == [offline[steps]]


@pytest.mark.parametrize("steps", [0, 5])
def test_run_batch(
    steps: int, offline: dict[int, str], folder: Path, run_vllm: Callable[..., str]
) -> None:
    line = recipe("vllm run-batch", "json", steps, (PLACE, MODEL))
    (folder / "questions.jsonl").write_text(line)
    code = recipe("vllm run-batch", "bash", steps, (PLACE, MODEL)).rstrip()
    code += f" --dtype float32 --enforce-eager --max-model-len {LENGTH}"
    run_vllm("bash", "-c", f"{code} --kv-cache-memory-bytes {1 << 26}")
    [answer] = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    choices = json.loads(answer)["response"]["body"]["choices"]
    assert choices[0]["message"]["content"] == offline[steps]
