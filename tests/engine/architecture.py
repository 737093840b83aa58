"""One model through SLOT on vLLM, in a process of its own: stdin to stdout in JSON.

vLLM changes some of transformers' classes in place, and some architectures need other settings of
the process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tests.engine.runner  # noqa: F401
from slot_vllm.params import SlotError
from tests.engine.cases import Answer, Case
from tests.engine.engines import SLOT, SMALL, runner_of
from tests.engine.generate import delta_of, run, tokens_of
from tests.engine.own_answers import Recorded, own_answer

# No preemption, but prompts split over steps.
OPTIONS = {**SMALL, "num_gpu_blocks_override": 120}

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Dynamo does not get through some models (Cohere) on a CPU without Triton.
    "TORCHDYNAMO_DISABLE": "1",
    # The CPU's kernel for latent attention (DeepSeek-V2) takes no float32.
    "VLLM_MLA_DISABLE": "1",
}


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
    request = {"model": model, "cases": [asdict(case) for case in cases], "slot": slot}
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.architecture"],
        input=json.dumps(request),
        env={**os.environ, **ENVIRONMENT, "SLOT_TEST_RUNNER": runner},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        said = (result.stdout[-3000:] + result.stderr)[-6000:]
        raise RuntimeError(f"{said}\nThe process ended with status {result.returncode}.")
    found = json.loads(result.stdout.splitlines()[-1])
    return Outcome(**{**found, "own": [Answer(**answer) for answer in found["own"]]})


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


def main() -> None:
    request = json.load(sys.stdin)
    cases = [Case(**case) for case in request["cases"]]
    print("\n" + json.dumps(asdict(_run(request["model"], cases, request["slot"]))))


if __name__ == "__main__":
    main()
