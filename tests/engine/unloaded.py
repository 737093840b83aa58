"""Cases on vLLM in a process that never loads the plugin."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tests.engine.runner  # noqa: F401
from tests.engine.cases import Case
from tests.engine.engines import SMALL
from tests.engine.generate import run

# Per output: the tokens, and per token the logprobs as [token, logprob] pairs.
Bits = list[list[Any]]


def tokens_and_logprobs(outputs: Sequence[Any]) -> Bits:
    bits: Bits = []
    for output in outputs:
        (sequence,) = output.outputs
        logprobs = [[[t, p.logprob] for t, p in best.items()] for best in sequence.logprobs]
        bits.append([list(sequence.token_ids), logprobs])
    return bits


def run_unloaded(
    model: str, cases: Sequence[Case], options: Sequence[dict[str, Any]]
) -> list[Bits]:
    """Of an engine for each of ``options``. JSON keeps every bit of a float."""
    request = {"model": model, "cases": [asdict(c) for c in cases], "options": options}
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.unloaded"],
        input=json.dumps(request),
        env={**os.environ, "VLLM_PLUGINS": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    bits: list[Bits] = json.loads(result.stdout.splitlines()[-1])
    return bits


def main() -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    request = json.load(sys.stdin)
    cases = [Case(**case) for case in request["cases"]]
    # All at once: with the first one vLLM would end what both share.
    engines = [LLM(request["model"], **{**SMALL, **options}) for options in request["options"]]
    bits = [tokens_and_logprobs(run(llm, cases, logprobs=5)) for llm in engines]
    assert not hasattr(EngineArgs.create_engine_config, "__wrapped__")
    print(json.dumps(bits))


if __name__ == "__main__":
    main()
