"""Run SLOT on vLLM with a tiny random model per architecture, and compare with transformers.

    python scripts/check_architectures.py                      # what the log lacks
    python scripts/check_architectures.py --runner v2 qwen3 falcon
    python scripts/fill_tables.py                              # docs/architectures.md, from the log

In float32 every greedy token and every delta must equal the reference of the test suite. Each row
is a line of the log as soon as it is there; named architectures are run again. The exit code is 1
if an architecture is wrong.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from make_tiny_model import ARCHITECTURES, TIED, make_tiny_model

ROOT = Path(__file__).resolve().parents[1]
# The reference is the test suite's.
sys.path.insert(0, str(ROOT))

from tests.engine.architecture import Outcome, run_architecture  # noqa: E402
from tests.engine.cases import (  # noqa: E402
    NEAR_TIE,
    Answer,
    Case,
    delta_tolerance,
    mixed_cases,
)
from tests.engine.reference import answers  # noqa: E402

LOG = ROOT / "logs/full/architectures.jsonl"
# vLLM's model runners; V2 on a CPU under Triton's interpreter.
RUNNERS = ("v2", "v1")
ON_OWN = "exact on vLLM's hidden states"
# Far more than float32's rounding.
SAME_HIDDEN = 1e-4
CASES = mixed_cases(count=8, new_tokens=12)
WITHOUT = [replace(case, steps=0) for case in CASES]


@dataclass(frozen=True)
class Row:
    """result: exact, exact on vLLM's hidden states, refused, wrong, or that vLLM does not start.
    error: the largest, as a share of what is allowed. vllm: its version."""

    architecture: str
    runner: str
    implementation: str
    head: str
    result: str
    ties: int | None = None
    error: float | None = None
    vllm: str = version("vllm")

    @property
    def good(self) -> bool:
        return self.result == "exact" or self.result.startswith(
            ("refused: ", "does not start: ", ON_OWN)
        )

    def line(self) -> str:
        return json.dumps(asdict(self))


def compare(
    architecture: str,
    runner: str,
    outcome: Outcome,
    cases: Sequence[Case],
    expected: Sequence[Answer],
) -> Row:
    implementation, head = outcome.implementation, outcome.head
    if outcome.refused is not None:
        return Row(architecture, runner, implementation, head, f"refused: {outcome.refused}")
    ties, largest, wrong = 0, 0.0, []
    got = zip(cases, expected, outcome.tokens, outcome.deltas, strict=True)
    for i, (case, answer, tokens, delta) in enumerate(got):
        pairs = enumerate(zip(tokens, answer.tokens, strict=True))
        first = next((position for position, (a, b) in pairs if a != b), None)
        if first is not None and answer.gaps[first] < NEAR_TIE:
            ties += 1
        elif first is not None:
            wrong.append(f"prompt {i}, token {first}")
        if case.steps:
            difference = torch.tensor(delta or [torch.nan]) - torch.tensor(answer.delta)
            error = difference.abs().max().item() / delta_tolerance(case.lr)
            largest = max(largest, error)
            if not error <= 1:
                wrong.append(f"prompt {i}, delta")
    result = f"wrong: {'; '.join(wrong)}" if wrong else "exact"
    return Row(architecture, runner, implementation, head, result, ties, round(largest, 3))


def check(architecture: str, runner: str, directory: Path) -> Row:
    model = str(directory / architecture)
    if not Path(model).exists():
        make_tiny_model(Path(model), architecture, tied=architecture in TIED)
    try:
        outcome = run_architecture(model, CASES, runner=runner)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return Row(architecture, runner, "", "", failure(model, runner, str(error)))
    # A refused head may be one that the reference does not know either.
    expected = [] if outcome.refused else reference(model)
    row = compare(architecture, runner, outcome, CASES, expected)
    return row if row.good else blame(row, model, outcome, expected)


def failure(model: str, runner: str, said: str) -> str:
    """Whose it is that an engine with SLOT ended with ``said``."""

    def message(said: str) -> str:
        lines = said.splitlines()
        # Of a process that crashed, the last line says so.
        error = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
        return error[:200].strip()

    try:
        run_architecture(model, WITHOUT, slot=False, runner=runner)
    except RuntimeError as alone:
        return f"does not start: {message(str(alone))}"
    return f"wrong: ends with SLOT alone: {message(said)}"


def reference(model: str) -> list[Answer]:
    return [Answer(**answer) for answer in answers(model, [asdict(case) for case in CASES])]


def blame(row: Row, model: str, outcome: Outcome, expected: Sequence[Answer]) -> Row:
    """A wrong row is not SLOT's if SLOT is exact on vLLM's own hidden states, and those are what
    vLLM computes without SLOT too, and not what transformers computes."""
    own = compare(row.architecture, row.runner, outcome, CASES, outcome.own)
    if not own.good:
        return replace(own, result=f"{own.result}, on vLLM's hidden states")
    plain, idle = (run_architecture(model, WITHOUT, slot, row.runner) for slot in (False, True))
    if idle.tokens != plain.tokens:
        return replace(row, result="wrong: with slot_steps 0 other tokens than vLLM's")
    if not largest(outcome.last_hidden, plain.last_hidden) <= SAME_HIDDEN:
        return replace(row, result="wrong: other hidden states than vLLM's")
    difference = largest(plain.last_hidden, [answer.last_hidden for answer in expected])
    if difference <= SAME_HIDDEN:
        return row
    return replace(own, result=f"{ON_OWN} ({difference:.0e} from transformers')")


def largest(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference of two lists of vectors."""
    return (torch.tensor(one) - torch.tensor(other)).abs().max().item()


def rows_of(log: Path) -> dict[tuple[str, str], str]:
    """The log's lines, by architecture and runner."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rows = ((json.loads(line), line) for line in lines)
    return {(row["architecture"], row["runner"]): line for row, line in rows}


def write(row: Row, log: Path) -> None:
    """In place of an earlier one of its architecture and runner."""
    lines = rows_of(log) | {(row.architecture, row.runner): row.line()}
    log.write_text("".join(f"{lines[key]}\n" for key in sorted(lines)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", metavar="NAME", help=", ".join(ARCHITECTURES))
    parser.add_argument("--runner", choices=RUNNERS, help="vLLM's model runner; both by default")
    parser.add_argument("--log", type=Path, default=LOG, metavar="FILE", help="a line per row")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.architectures) - set(ARCHITECTURES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(ARCHITECTURES)}")
    runners = [arguments.runner] if arguments.runner else RUNNERS
    names = arguments.architectures or ARCHITECTURES
    there = set() if arguments.architectures else rows_of(arguments.log).keys()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for architecture, runner in product(names, runners):
            if (architecture, runner) in there:
                continue
            rows.append(check(architecture, runner, Path(directory)))
            print(rows[-1].line(), flush=True)
            write(rows[-1], arguments.log)
    sys.exit(not all(row.good for row in rows))


if __name__ == "__main__":
    main()
