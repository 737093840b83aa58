"""Run SLOT on vLLM with a tiny random model per architecture, and compare with transformers.

    python scripts/check_architectures.py qwen3 falcon
    python scripts/check_architectures.py --write docs/architectures.md

In float32 every greedy token and every delta must equal the reference of the test suite. Rows of
architectures that are not named stay as they are in the file. The exit code is 1 if an architecture
is wrong, or fails in vLLM itself.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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

ON_OWN = "exact on vLLM's hidden states"
# Far more than float32's rounding.
SAME_HIDDEN = 1e-4
CASES = mixed_cases(count=8, new_tokens=12)
INTRODUCTION = """\
# Architectures

SLOT on vLLM's V1 model runner on a CPU, in float32 and greedy, beside plain transformers with the
paper's loop in float64 (`tests/engine/reference.py`): a tiny random model per architecture, with 8
prompts of 1 to 200 tokens, split over steps of 48, with five settings of steps and lr, and 12 new
tokens each.
*Exact*: every token is the same, or first differs where the two best logits are closer than
1e-3 (a near tie), and every delta is within max(2e-3 lr, 2e-5) of the reference's; the last column
is the largest error as a share of that. *Refused*: SLOT says so when the engine starts.
*Exact on vLLM's hidden states*: without SLOT too, vLLM computes other hidden states than
transformers, by so much where the prompts end. Every token and every delta is what the same loop
makes of vLLM's own ones, as they leave its model, and with `slot_steps: 0` SLOT gives vLLM's own
tokens. Of Bloom, vLLM computes the exact GELU and transformers its approximation.

Left out: Mamba, whose kernels a CPU build lacks.

| architecture | vLLM's class | head | result | near ties | error |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """result: exact, exact on vLLM's hidden states, refused, wrong, or that vLLM fails."""

    architecture: str
    implementation: str
    head: str
    result: str
    ties: int | None = None
    error: float | None = None

    @property
    def good(self) -> bool:
        return self.result == "exact" or self.result.startswith(("refused", ON_OWN))

    def line(self) -> str:
        cells = [self.architecture, self.implementation, self.head, self.result]
        cells.append("" if self.ties is None else str(self.ties))
        cells.append("" if self.error is None else f"{self.error:.3f}")
        return f"| {' | '.join(cells)} |"


def compare(
    architecture: str, outcome: Outcome, cases: Sequence[Case], expected: Sequence[Answer]
) -> Row:
    if outcome.refused is not None:
        return Row(architecture, outcome.implementation, "", f"refused: {outcome.refused}")
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
    return Row(architecture, outcome.implementation, outcome.head, result, ties, largest)


def check(architecture: str, directory: Path) -> Row:
    model = str(directory / architecture)
    make_tiny_model(Path(model), architecture, tied=architecture in TIED)
    try:
        outcome = run_architecture(model, CASES)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        lines = [line for line in str(error).splitlines() if "Error: " in line] or ["see above"]
        return Row(architecture, "", "", f"vLLM fails: {lines[-1][:200].replace('|', '/')}")
    # A refused head may be one that the reference does not know either.
    expected = [] if outcome.refused else reference(model)
    row = compare(architecture, outcome, CASES, expected)
    return row if row.good else blame(row, model, outcome, expected)


def reference(model: str) -> list[Answer]:
    return [Answer(**answer) for answer in answers(model, [asdict(case) for case in CASES])]


def blame(row: Row, model: str, outcome: Outcome, expected: Sequence[Answer]) -> Row:
    """A wrong row is not SLOT's if SLOT is exact on vLLM's own hidden states, and those are what
    vLLM computes without SLOT too, and not what transformers computes."""
    own = compare(row.architecture, outcome, CASES, outcome.own)
    if not own.good:
        return replace(own, result=f"{own.result}, on vLLM's hidden states")
    without = [replace(case, steps=0) for case in CASES]
    plain, idle = (run_architecture(model, without, slot) for slot in (False, True))
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


def write(row: Row, file: Path) -> None:
    """Into docs/architectures.md: the row, in place of an earlier one of its architecture."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    lines = {name: line for line in rows if (name := line.split(" ")[1]) in ARCHITECTURES}
    lines[row.architecture] = row.line()
    made = "Made by `python scripts/check_architectures.py --write docs/architectures.md`."
    whole = [lines[name] for name in sorted(lines)]
    file.write_text(INTRODUCTION + "\n".join([*whole, "", made, ""]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", metavar="NAME", help=", ".join(ARCHITECTURES))
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there too")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.architectures) - set(ARCHITECTURES))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; allowed: {', '.join(ARCHITECTURES)}")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for architecture in arguments.architectures or ARCHITECTURES:
            rows.append(check(architecture, Path(directory)))
            print(rows[-1].line(), flush=True)
            if arguments.write:
                write(rows[-1], arguments.write)
    sys.exit(not all(row.good for row in rows))


if __name__ == "__main__":
    main()
