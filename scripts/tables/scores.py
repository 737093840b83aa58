"""What a run's arms scored, and what the data allow to say of it."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.record import BASELINE, CUT_OFF, LOOPS, Arm, Result
from tables.markdown import arm, cell, table

ROOT = Path(__file__).resolve().parent.parent.parent
# Of the paper, Qwen2.5-7B on GSM8K: right answers with so many steps of lr 0.1 as its index.
PAPER = (0.575, 0.582, 0.610, 0.636, 0.660, 0.662)


def scores(directory: Path, metrics: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    shown = [metric for metric in metrics if metric != "PAPER"]
    heading, rows = ["arm", "problems", *shown], []
    for row in run.arms:
        rows.append([arm(row), row.samples, *(cell(row.metrics[m]) for m in shown)])
        if "PAPER" in metrics:
            rows[-1].append(_papers(row))
    if "PAPER" in metrics:
        heading.append(f"{shown[0]}: paper, 7B")
    return table(heading, rows)


def _papers(row: Result) -> str:
    papers_own = Arm(name=row.name, steps=row.steps, lr=0.1)
    return f"{100 * PAPER[row.steps]:.1f} %" if row.arm == papers_own else "-"


def arms(directory: Path, _: Sequence[str]) -> str:
    file = ROOT / "configs" / directory.parent.name / f"{directory.name}.yaml"
    planned = [arm["name"] for arm in yaml.safe_load(file.read_text(encoding="utf-8"))["arms"]]
    there = [row.name for row in read_results(directory / RESULTS).arms]
    missing = ", ".join(f"`{name}`" for name in planned if name not in there)
    lack = f"; [still to be run](#what-is-still-to-be-run): {missing}" if missing else ""
    return f"p is corrected for the {len(there) - 1} arms with SLOT that are here{lack}."


def answers(directory: Path, _: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    heading = ["arm", "tokens per answer", CUT_OFF, LOOPS, "prompt loss, before → after"]
    return table(heading, ([arm(row), *_conduct(row)] for row in run.arms))


def _conduct(row: Result) -> list[object]:
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    tokens = f"{row.generated_tokens / row.samples:.0f}"
    return [tokens, cell(row.metrics[CUT_OFF]), cell(row.metrics[LOOPS]), loss]


def groups(directory: Path, columns: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    [column] = columns
    groups = dict.fromkeys(group for row in run.arms for group in row.breakdown[column])
    rows = (
        [group, run.arms[0].breakdown[column][group].samples]
        + [cell(row.breakdown[column][group]) for row in run.arms]
        for group in groups
    )
    return table([column, "problems", *(arm(row) for row in run.arms)], rows)


def words(directory: Path, metrics: Sequence[str]) -> str:
    run = read_results(directory / RESULTS)
    return "\n".join(
        f"- {arm(row)}, {metric}: {row.said[metric]}"
        for row in run.arms
        for metric in metrics
        if row.name != BASELINE
    )
