"""What a run's answers say: repetitions, the tokens that W delta moves, answers gained and lost."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation.directory import RESULTS, read_inspections, read_results
from slot_vllm.evaluation.inspection_record import TokenShift
from slot_vllm.evaluation.record import BASELINE, Sample
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from tables.instructions import INSTRUCTIONS
from tables.markdown import table

TOKENS = 15  # of a list of shifts
_CHARACTERS = 600  # of an answer


def repeats(directory: Path, names: Sequence[str]) -> str:
    [metric] = names
    right: dict[str, list[Sample]] = {
        row.name: [] for row in read_results(directory / RESULTS).arms
    }
    for sample in SampleFile(directory / SAMPLES).read():
        right[sample.arm] += [sample] if sample.scores[metric] else []
    heading = ["arm", f"{metric}: right answers", "of these, without repetition"]
    rows = (
        [f"`{arm}`", len(samples), sum(not is_repetition(s.completion) for s in samples)]
        for arm, samples in right.items()
    )
    return table(heading, rows)


def is_repetition(text: str) -> bool:
    """At least 20 words, fewer than half of them distinct: short answers cannot loop."""
    words = text.split()
    return len(words) >= 20 and 2 * len(set(words)) < len(words)


def shifts(directory: Path, _: Sequence[str]) -> str:
    rows = []
    for found in read_inspections(directory):
        tokens = (_codes(found.raised), _codes(found.lowered))
        rows.append([f"`{found.arm}`", found.problems, *tokens])
    return table(["arm", "problems", "raised", "lowered"], rows)


def _codes(shifts: Sequence[TokenShift]) -> str:
    # A vertical bar would end the table's cell, a backtick the code.
    texts = (shift.token.replace("|", "\\|") for shift in shifts[:TOKENS])
    return " ".join(f"`` {text} ``" if "`" in text else f"`{text}`" for text in texts)


def examples(directory: Path, names: Sequence[str]) -> str:
    metric, *arms = names
    answers: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in SampleFile(directory / SAMPLES).read():
        answers[sample.arm].setdefault(sample.id, sample)
    lines = []
    baseline = answers[BASELINE]
    for arm in arms or [row.name for row in read_results(directory / RESULTS).arms]:
        if arm == BASELINE:
            continue
        samples = answers[arm]
        shown = baseline.keys() - _quoting(directory, BASELINE, arm)
        for word, sign in (("gained", 1), ("lost", -1)):
            changed = [
                problem
                for problem, before in baseline.items()
                if problem in shown
                and sign * ((samples[problem].scores[metric] or 0) - (before.scores[metric] or 0))
                > 0
            ]
            if not changed:
                lines += [f"`{arm}`: no problem is {word}.", ""]
                continue
            pair = {p: (baseline[p].completion, samples[p].completion) for p in changed}
            one = min(changed, key=lambda p: (len("".join(pair[p])), p))
            lines += [f"`{arm}`, problem {one}, {word}; without SLOT, then with it:", ""]
            lines += [line for text in pair[one] for line in ("~~~text", _short(text), "~~~", "")]
    return "\n".join(lines).rstrip()


def _quoting(directory: Path, *arms: str) -> set[str]:
    """The problems whose answers of these arms repeat the benchmark's text, where a run says so."""
    path = directory / INSTRUCTIONS
    quotes = json.loads(path.read_text(encoding="utf-8"))["quotes"] if path.exists() else {}
    return {problem for arm in arms for problem in quotes.get(arm, ())}


def _short(text: str) -> str:
    text = text.strip().replace("~~~", "~ ~ ~")
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]} …"
