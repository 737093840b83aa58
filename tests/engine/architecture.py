"""One model through SLOT on vLLM, in a process of its own: it is forked from one that has imported
vLLM, which takes longer than to run a tiny model.

vLLM changes some of transformers' classes in place, some architectures need other settings of the
process, and on some vLLM crashes.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tests.engine.runner  # noqa: F401  # before vLLM and Triton
from slot_vllm.params import SlotError
from tests.engine.cases import Answer, Case
from tests.engine.engines import SLOT, SMALL, runner_of
from tests.engine.forked import run_forked
from tests.engine.generate import delta_of, run, tokens_of
from tests.engine.own_answers import Recorded, own_answer
from tests.engine.runner import V2

# No preemption, but prompts split over steps.
OPTIONS = {**SMALL, "num_gpu_blocks_override": 120}

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Dynamo does not get through some models (Cohere) on a CPU without Triton.
    "TORCHDYNAMO_DISABLE": "1",
    # The CPU's kernel for latent attention (DeepSeek-V2) takes no float32.
    "VLLM_MLA_DISABLE": "1",
}
# What an engine imports when it starts.
IMPORTED = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu.model_runner" if V2 else "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.model_loader.default_loader",
    "slot_vllm.engine.worker.extension",
)
# Of a request's directory: what its process printed, and its outcome.
SAID, FOUND = "said.log", "found.json"
ENDED = "ended: "


@dataclass(frozen=True)
class Outcome:
    """refused: SLOT's message, if it refuses the model. implementation: vLLM's class. last_hidden:
    of each prompt's last token, (d,). own: what the paper's loop makes of vLLM's hidden states."""

    refused: str | None
    implementation: str
    head: str
    tokens: list[list[int]]
    deltas: list[list[float] | None]
    last_hidden: list[list[float]] = field(default_factory=list)
    own: list[Answer] = field(default_factory=list)


def run_architecture(
    model: str, cases: Sequence[Case], slot: bool = True, runner: str = "v1"
) -> Outcome:
    """slot: False for vLLM alone, which knows no steps. runner: vLLM's model runner, v1 or v2.
    Raises RuntimeError where vLLM fails."""
    with tempfile.TemporaryDirectory() as directory:
        request = {
            "model": model,
            "cases": [asdict(case) for case in cases],
            "slot": slot,
            "directory": directory,
        }
        status = _forking(runner).ask(request)
        if status:
            said = Path(directory, SAID).read_text(errors="replace")[-6000:]
            raise RuntimeError(f"{said}\nThe process ended with status {status}.")
        found = json.loads(Path(directory, FOUND).read_text())
    return Outcome(**{**found, "own": [Answer(**answer) for answer in found["own"]]})


class Forking:
    """The process that has imported vLLM with that model runner, until this one ends."""

    def __init__(self, runner: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.architecture"],
            env={**os.environ, **ENVIRONMENT, "SLOT_TEST_RUNNER": runner},
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> int:
        """The exit status of the process that does it; of a signal, below zero."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(ENDED):
                return int(line.removeprefix(ENDED))
        raise RuntimeError(f"vLLM's process ended with status {self._process.wait()}")


_forking = cache(Forking)


def _run(model: str, cases: Sequence[Case], slot: bool) -> Outcome:
    from vllm import LLM

    options: dict[str, Any] = dict(OPTIONS)
    if slot:
        options["worker_extension_cls"] = "slot_vllm.SlotWorkerExtension"
        options["additional_config"] = {"slot": SLOT}
    try:
        llm = LLM(model, **options)
    except SlotError as error:
        return Outcome(str(error), "", "", [], [])
    runner = runner_of(llm)
    recorded = Recorded(runner)
    outputs = run(llm, cases) if slot else run(llm, cases, extra_args=None)
    states = [recorded.of(output) for output in outputs]
    last = [s[len(case.tokens) - 1].tolist() for s, case in zip(states, cases, strict=True)]
    if not slot:
        return Outcome(None, "", "", tokens_of(outputs), [None] * len(cases), last)
    linear_head = runner.slot_state.linear_head
    head = linear_head.head()
    return Outcome(
        None,
        type(runner.get_model()).__name__,
        linear_head.describe(),
        tokens_of(outputs),
        [delta_of(llm, output) for output in outputs],
        last,
        [own_answer(head, case, own) for case, own in zip(cases, states, strict=True)],
    )


def _answer(request: dict[str, Any]) -> None:
    cases = [Case(**case) for case in request["cases"]]
    outcome = _run(request["model"], cases, request["slot"])
    Path(request["directory"], FOUND).write_text(json.dumps(asdict(outcome)))


def main() -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        status = run_forked(Path(request["directory"], SAID), _answer, request)
        print(f"{ENDED}{status}", flush=True)


if __name__ == "__main__":
    main()
