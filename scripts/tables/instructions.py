"""Which kinds of instructions of IFEval each arm gains and loses, by what
scripts/score_instructions.py found."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from statsmodels.stats.multitest import multipletests

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.record import BASELINE
from slot_vllm.evaluation.statistics import ALPHA, p_value
from tables.markdown import table

# Of scripts/score_instructions.py, beside a run's results.
INSTRUCTIONS = "instructions.json"
RULES = ("strict", "loose")


def instructions(directory: Path, names: Sequence[str]) -> str:
    """Per kind, of the problems that ask for it: those whose instructions of the kind the baseline
    follows, and by arm those that are gained and lost; then what all the tests together tell."""
    [rule] = names
    found = json.loads((directory / INSTRUCTIONS).read_text(encoding="utf-8"))
    arms = [row.name for row in read_results(directory / RESULTS).arms]
    if set(arms) != found["arms"].keys():
        raise ValueError(f"{directory}: {INSTRUCTIONS} has other arms: score_instructions.py")
    followed: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for problem, kinds in found["kinds"].items():
            bits = found["arms"][arm][problem][RULES.index(rule)]
            by_kind: dict[str, bool] = {}
            for kind, bit in zip(kinds, bits, strict=True):
                by_kind[kind] = by_kind.get(kind, True) and bit == "1"
            for kind, all_of_it in by_kind.items():
                followed[kind][arm].append(all_of_it)
    others = [arm for arm in arms if arm != BASELINE]
    p_values, rows = {}, []
    for kind in sorted(followed):
        scores = {arm: np.array(followed[kind][arm], float) for arm in arms}
        own = scores[BASELINE]
        row: list[object] = [f"`{kind}`", len(own), f"{own.sum():.0f}"]
        for arm in others:
            row.append(f"+{(scores[arm] > own).sum()} -{(scores[arm] < own).sum()}")
            p_values[f"`{kind}` by `{arm}` ({row[-1]})"] = p_value(scores[arm], own)
        rows.append(row)
    heading = ["kind", "problems", f"`{BASELINE}`", *(f"`{arm}`" for arm in others)]
    return f"{table(heading, rows)}\n\n{together(p_values, rule)}"


def together(p_values: dict[str, float], rule: str) -> str:
    values = list(p_values.values())
    corrected = multipletests(values, ALPHA, method="holm")[1]
    told = [
        f"{name}, p = {p:.2g}" for name, p in zip(p_values, corrected, strict=True) if p <= ALPHA
    ]
    below = sum(p <= ALPHA for p in values)
    return (
        f"Of these {len(values)} differences ({rule}), {below} have p ≤ {ALPHA} taken alone, where "
        f"chance gives up to {ALPHA * len(values):.0f}; corrected for all {len(values)} of them, "
        f"{len(told) or 'none'}{': ' if told else ''}{'; '.join(told)}."
    )
