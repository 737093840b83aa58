"""Run SLOT on vLLM with a tiny random model per architecture, and compare with transformers.

    python scripts/check_architectures.py qwen3 falcon
    python scripts/check_architectures.py --write docs/architectures.md

In float32 every greedy token and every delta must equal the reference of the test suite. Rows of
architectures that are not named stay as they are in the file. The exit code is 1 if an architecture
is wrong, or fails in vLLM itself.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from make_tiny_model import ARCHITECTURES, TIED

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
    reference,
)

NOT_COMPARABLE = "not comparable"
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
*Not comparable*: vLLM without SLOT gives other tokens than transformers on such a machine. So do
both of its forms of attention for DeepSeek-V2 on a CPU, in float32, where a prompt's tokens depend
on the batch; with `slot_steps: 0` SLOT gives vLLM's own tokens there too.

Left out: Bloom, of which vLLM computes the exact GELU and transformers its approximation, so that
hidden states differ by 1e-3 (for vLLM's own ones the deltas are exact), and Mamba, whose kernels a
CPU build lacks.

| architecture | vLLM's class | head | result | near ties | error |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """result: exact, refused, wrong, or that vLLM fails or is another model without SLOT too."""

    architecture: str
    implementation: str
    head: str
    result: str
    ties: int | None = None
    error: float | None = None

    @property
    def good(self) -> bool:
        return self.result == "exact" or self.result.startswith(("refused", NOT_COMPARABLE))

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
    command = [sys.executable, str(ROOT / "scripts/make_tiny_model.py"), model]
    command += ["--architecture", architecture]
    command += [] if architecture in TIED else ["--untied"]
    subprocess.run(command, check=True, capture_output=True)
    try:
        outcome = run_architecture(model, CASES)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        lines = [line for line in str(error).splitlines() if "Error: " in line] or ["see above"]
        return Row(architecture, "", "", f"vLLM fails: {lines[-1][:200].replace('|', '/')}")
    # A refused head may be one that the reference does not know either.
    expected = [] if outcome.refused else reference(model, CASES)
    row = compare(architecture, outcome, CASES, expected)
    return row if row.good else blame(row, model)


def blame(row: Row, model: str) -> Row:
    """A wrong row is not SLOT's if vLLM alone is not the model that transformers has."""
    without = [replace(case, steps=0) for case in CASES]
    plain = compare(
        row.architecture,
        run_architecture(model, without, slot=False),
        without,
        reference(model, without),
    )
    if plain.good:
        return row
    result = f"{NOT_COMPARABLE}: vLLM without SLOT gives other tokens than transformers"
    return Row(row.architecture, row.implementation, row.head, result)


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
