"""Inspections as tables on the terminal and as a bar chart."""

import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from rich.table import Table
from rich.text import Text

from slot_vllm.evaluation.errors import ConfigError, writing
from slot_vllm.evaluation.inspection_record import Inspection, Shifts, TokenShift
from slot_vllm.evaluation.report import figures, svg
from slot_vllm.evaluation.samples import write_whole
from slot_vllm.evaluation.table import new_table, terminal

SUFFIXES = (".png", ".svg")

_WIDE = 120
# Of every prompt only a few tokens; of a task's first prompts.
_PROMPTS, _PROMPT_TOKENS = 30, 3


def show(inspections: Sequence[Inspection]) -> None:
    """Prints each inspection's tables."""
    console = terminal(_WIDE)
    for inspection in inspections:
        if inspection.problems > 1:
            console.print(_prompts(inspection))
        console.print(_means(inspection))
        if not inspection.raised and not inspection.lowered:
            console.print("W delta is zero: nothing was learned.")


def check_output(path: Path) -> None:
    """Raises ConfigError if a chart cannot be written to ``path``."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {path}: allowed: a file name that ends in .png or .svg")
    if path.is_dir():
        raise ConfigError(f"--output {path}: it is a directory; allowed: a file")
    unfinished = path.with_name(f"{path.name}.tmp")
    with writing(f"--output {path}"):
        unfinished.touch()
        unfinished.unlink()


def write_chart(inspections: Sequence[Inspection], path: Path) -> None:
    """Writes all of the chart or nothing. Raises ConfigError."""
    kind, picture = path.suffix.lower().removeprefix("."), io.BytesIO()
    with svg.style():
        figures.shifts_chart(inspections).savefig(picture, format=kind, bbox_inches="tight")
    with writing(f"--output {path}"):
        write_whole(path, picture.getvalue())


def _means(inspection: Inspection) -> Table:
    single = inspection.problems == 1
    shift = "shift" if single else "mean shift"
    title = f"{inspection.arm} · {inspection.task}: W delta"
    if not single:
        title += f", mean over {inspection.problems} problems"
    common = (
        f"less {inspection.vocabulary_mean:+.4f}, the mean over the whole vocabulary, which "
        "changes nothing"
    )
    sides = ("raised", "lowered")
    grid = new_table((sides[0], shift, sides[1], shift), sides, title, common)
    for up, down in zip_longest(inspection.raised, inspection.lowered):
        grid.add_row(*_cells(inspection, up), *_cells(inspection, down))
    return grid


def _cells(shifts: Shifts, token: TokenShift | None) -> tuple[Text, Text]:
    if token is None:
        return Text(), Text()
    return Text(token.token), Text(f"{shifts.less_mean(token):+.4f}")


def _prompts(inspection: Inspection) -> Table:
    title = f"{inspection.arm} · {inspection.task}: W delta of each prompt"
    left_out = inspection.problems - _PROMPTS
    caption = f"and {left_out} more" if left_out > 0 else None
    columns = ("problem", "raised most", "lowered most")
    grid = new_table(columns, columns, title, caption)
    for prompt in inspection.prompts[:_PROMPTS]:
        sides = (_most(prompt, prompt.raised), _most(prompt, prompt.lowered))
        grid.add_row(Text(prompt.id), *sides)
    return grid


def _most(shifts: Shifts, tokens: Sequence[TokenShift]) -> Text:
    shown = tokens[:_PROMPT_TOKENS]
    return Text("  ".join(f"{t.token} {shifts.less_mean(t):+.3f}" for t in shown))
