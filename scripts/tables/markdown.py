"""A table in Markdown, and its cells of a run's scores."""

from collections.abc import Iterable, Sequence

from slot_vllm.evaluation.record import Compared, Result


def arm(row: Result) -> str:
    return f"`{row.name}`"


def cell(found: Compared) -> str:
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


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
