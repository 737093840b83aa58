"""Writes the tables of committed runs into the pages that show them.

    python scripts/fill_tables.py

A page says where and what, RUN being a directory under logs/reference:

    <!-- scores RUN: METRIC, METRIC -->   a row per arm: value, difference to the baseline, Holm's p
    <!-- answers RUN -->                  a row per arm: lengths, what was cut off, loops, losses
    <!-- groups RUN: COLUMN -->           a row per group of problems, an arm per column
    <!-- words RUN: METRIC, METRIC -->    what the data allow to say, arm by arm
    <!-- end -->

Shares are in per cent, differences in points.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.record import BASELINE, CUT_OFF, LOOPS, Compared, Result, RunRecord

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "study.md")
_BLOCK = re.compile(r"(<!-- (\w+) ([\w./-]+)(?:: ([^>]*))? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page's text with every block made again. Raises ValueError for a block of no kind."""

    def block(found: re.Match[str]) -> str:
        start, kind, run, named, end = found.groups()
        if kind not in _KINDS:
            raise ValueError(f"<!-- {kind} -->: no such block; allowed: {', '.join(_KINDS)}")
        names = [name.strip() for name in named.split(",")] if named else []
        record = read_results(ROOT / "logs" / "reference" / run / RESULTS)
        return f"{start}{_KINDS[kind](record, names)}\n{end}"

    return _BLOCK.sub(block, page)


def _scores(run: RunRecord, metrics: Sequence[str]) -> str:
    rows = ([_arm(row), row.samples, *(_cell(row.metrics[m]) for m in metrics)] for row in run.arms)
    return _table(["arm", "problems", *metrics], rows)


def _answers(run: RunRecord, _: Sequence[str]) -> str:
    heading = ["arm", "tokens per answer", "cut off", "loops", "prompt loss, before → after"]
    return _table(heading, ([_arm(row), *_conduct(row)] for row in run.arms))


def _conduct(row: Result) -> list[object]:
    loss = "-"
    if row.first_loss is not None and row.last_loss is not None:
        loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
    tokens = f"{row.generated_tokens / row.samples:.0f}"
    return [tokens, _cell(row.metrics[CUT_OFF]), _cell(row.metrics[LOOPS]), loss]


def _groups(run: RunRecord, columns: Sequence[str]) -> str:
    [column] = columns
    groups = dict.fromkeys(group for row in run.arms for group in row.breakdown[column])
    rows = (
        [group, run.arms[0].breakdown[column][group].samples]
        + [_cell(row.breakdown[column][group]) for row in run.arms]
        for group in groups
    )
    return _table([column, "problems", *(_arm(row) for row in run.arms)], rows)


def _words(run: RunRecord, metrics: Sequence[str]) -> str:
    return "\n".join(
        f"- {_arm(row)}, {metric}: {row.said[metric]}"
        for row in run.arms
        for metric in metrics
        if row.name != BASELINE
    )


_KINDS: dict[str, Callable[[RunRecord, Sequence[str]], str]] = {
    "scores": _scores,
    "answers": _answers,
    "groups": _groups,
    "words": _words,
}


def _arm(row: Result) -> str:
    return f"`{row.name}`"


def _cell(found: Compared) -> str:
    if found.value is None:
        return "-"
    value = f"{100 * found.value:.1f} %"
    if found.difference is None:
        return value + _bounds(found.interval, ".1f")
    points = f"{100 * found.difference:+.1f}{_bounds(found.difference_interval, '+.1f')}"
    holm = "" if found.p_value_holm is None else f", p = {found.p_value_holm:.2g}"
    return f"{value}: {points}{holm}"


def _bounds(interval: tuple[float, float] | None, form: str) -> str:
    if interval is None:
        return ""
    low, high = (format(100 * bound, form) for bound in interval)
    return f" [{low}, {high}]"


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
