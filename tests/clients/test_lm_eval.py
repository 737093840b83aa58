"""lm-evaluation-harness, by a server and with its own vLLM engine."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import LENGTH, MODEL
from tests.clients.recipe import MODEL as PLACE
from tests.clients.recipe import QUESTION, URL, recipe
from tests.engine.server import Server

pytestmark = pytest.mark.full

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["nothing ends with this"]}
metric_list: [{metric: exact_match}]
"""
# Its code from the clients' environment, and all that both have from the environment with vLLM.
PROGRAM = """#!{python}
import sys

sys.path.append({clients!r})
from lm_eval.__main__ import cli_evaluate

cli_evaluate()
"""


@pytest.fixture
def tasks(folder: Path) -> tuple[str, str]:
    """What stands in a recipe, and in its place the task with the recipes' question."""
    (folder / "own.yaml").write_text(TASK)
    (folder / "questions.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "25"}))
    return "--tasks gsm8k", "--tasks own --include_path ."


def answer(folder: Path) -> str:
    [samples] = (folder / "results").rglob("samples_own_*.jsonl")
    [line] = samples.read_text(encoding="utf-8").splitlines()
    [[text]] = json.loads(line)["resps"]
    return str(text)


@pytest.mark.parametrize("steps", [0, 5])
def test_by_a_server(
    steps: int,
    server: Server,
    offline: dict[int, str],
    folder: Path,
    tasks: tuple[str, str],
    run_client: Callable[..., str],
) -> None:
    changes = (URL, server.url), (PLACE, MODEL), tasks
    run_client("bash", "-c", recipe("lm-evaluation-harness", "bash", steps, *changes))
    assert answer(folder) == offline[steps]


@pytest.mark.parametrize("steps", [0, 5])
def test_in_process(
    steps: int,
    offline: dict[int, str],
    folder: Path,
    tasks: tuple[str, str],
    clients: Path,
    run_vllm: Callable[..., str],
) -> None:
    engine = f"dtype=float32,enforce_eager=True,max_model_len={LENGTH}"
    engine += f",kv_cache_memory_bytes={1 << 26}"
    [packages] = (clients / "lib").glob("python*/site-packages")
    program = folder / "lm_eval"
    program.write_text(PROGRAM.format(python=sys.executable, clients=str(packages)))
    program.chmod(0o755)
    changes = ("lm_eval", shlex.quote(str(program))), (PLACE, f"{MODEL},{engine}"), tasks
    code = recipe("lm-evaluation-harness in process", "bash", steps, *changes)
    run_vllm("bash", "-c", code)
    assert answer(folder) == offline[steps]
