"""``table``: a markdown table per kind of benchmark, from their JSON files."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slot_vllm.bench.variants import OPTIONS, OURS, PUBLISHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")


def run(options: argparse.Namespace) -> int:
    print(table(options.files))
    return 0


def table(files: Sequence[Path]) -> str:
    """The files in their order, kind by kind: optimize, its options, burst.

    Raises ValueError for a file of another kind.
    """
    tables: dict[str, list[Row]] = {kind: [] for kind in ("optimize", "options", "burst")}
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        kind = result.get("benchmark") if isinstance(result, dict) else None
        if kind not in _ROWS:
            known = ", ".join(_ROWS)
            raise ValueError(f"{file}: not written by python -m slot_vllm.bench {known}")
        for name, row in _ROWS[kind](result):
            tables[name].append({"device": _device(result), **row, "file": f"`{file.name}`"})
    return "\n\n".join(_markdown(rows) for rows in tables.values() if rows)


# Cells by their heading.
Row = dict[str, str]


def _optimize_rows(result: dict[str, Any]) -> Iterator[tuple[str, Row]]:
    shape, variants = result["shape"], result["variants"]
    ours, published = variants[OURS], variants[PUBLISHED]
    size = {
        "d x V": f"{shape['hidden']} x {shape['vocabulary']}",
        "requests x tokens": f"{shape['requests']} x {shape['tokens']}",
    }
    floor = result.get("floor_multiple")
    yield (
        "optimize",
        {
            **size,
            "bare product (s)": f"{result['bare']['seconds']:.3g}",
            "published (s)": f"{published['seconds']:.3g}",
            "ours (s)": f"{ours['seconds']:.3g}",
            "speedup": f"{ours['speedup']:.1f}",
            "gemm_multiple": f"{ours['gemm_multiple']:.2f}",
            "peak extra (MiB)": f"{ours['peak_extra_bytes'] / 2**20:.0f}",
            "error, published": _error(published["largest_difference"]),
            "error, ours": _error(ours["largest_difference"]),
            "floor_multiple": "" if floor is None else f"{floor:.2f}",
        },
    )
    for name in OPTIONS:
        if name in variants:
            yield (
                "options",
                {
                    **size,
                    "option": f"`{name}`",
                    "paper (s)": f"{ours['seconds']:.3g}",
                    "seconds": f"{variants[name]['seconds']:.3g}",
                    "multiple of paper": f"{variants[name]['paper_multiple']:.2f}",
                    "peak extra (MiB)": f"{variants[name]['peak_extra_bytes'] / 2**20:.0f}",
                },
            )


def _burst_rows(result: dict[str, Any]) -> Iterator[tuple[str, Row]]:
    settings = result["settings"]
    for name, arm in result["arms"].items():
        figures = {
            heading: _interval(arm["figures"][figure], unit)
            for heading, figure, unit in (
                ("ITL before p50 (ms)", "before_p50", 1e3),
                ("ITL p50 (ms)", "itl_p50", 1e3),
                ("ITL p99 (ms)", "itl_p99", 1e3),
                ("ITL max (ms)", "itl_max", 1e3),
                ("TTFT p50 (s)", "ttft_p50", 1),
                ("TTFT max (s)", "ttft_max", 1),
            )
        }
        yield (
            "burst",
            {
                "shape": result["shape"],
                "running": str(settings["running"]),
                "burst x tokens": f"{settings['burst']} x {settings['burst_tokens']}",
                "arm": name,
                **figures,
            },
        )


# By the benchmark that wrote a result: its rows, each with the table that it stands in.
_ROWS = {"optimize": _optimize_rows, "burst": _burst_rows}


def _markdown(rows: Sequence[Row]) -> str:
    head = list(rows[0])
    cells = [head, ["---"] * len(head), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _device(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if machine.get("gpu"):
        return str(machine["gpu"])
    kernels = ", torch alone" if result.get("kernels") == "torch" else ""
    return f"{machine['cores']} CPU cores{kernels}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _interval(spread: dict[str, float], unit: float) -> str:
    median, lowest, highest = (spread[name] * unit for name in ("median", "lowest", "highest"))
    return f"{median:.4g} [{lowest:.4g}, {highest:.4g}]"
