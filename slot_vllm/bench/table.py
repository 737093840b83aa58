"""``table``: a markdown table per kind of benchmark, from their JSON files."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slot_vllm.bench.variants import OURS, PUBLISHED


def add_command(commands: Any) -> None:
    """Adds ``table`` to argparse's subparsers."""
    parser = commands.add_parser("table", help=__doc__.partition(":")[2].split(".")[0].strip())
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    print(table(options.files))
    return 0


def table(files: Sequence[Path]) -> str:
    """The files in their order, those of ``optimize`` before those of ``serve``.

    Raises ValueError for a file of neither.
    """
    results: dict[str, list[tuple[Path, dict[str, Any]]]] = {"optimize": [], "serve": []}
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        kind = result.get("benchmark") if isinstance(result, dict) else None
        if kind not in results:
            raise ValueError(f"{file}: not written by python -m slot_vllm.bench optimize or serve")
        results[kind].append((file, result))
    parts = []
    if results["optimize"]:
        parts.append(_markdown(_OPTIMIZE, (_optimize_row(*one) for one in results["optimize"])))
    if results["serve"]:
        rows = (row for one in results["serve"] for row in _serve_rows(*one))
        parts.append(_markdown(_SERVE, rows))
    return "\n\n".join(parts)


_OPTIMIZE = (
    "device",
    "d x V",
    "requests x tokens",
    "bare product (s)",
    "published (s)",
    "ours (s)",
    "speedup",
    "gemm_multiple",
    "peak extra (MiB)",
    "error, published",
    "error, ours",
    "share of roofline",
    "file",
)


def _optimize_row(file: Path, result: dict[str, Any]) -> list[str]:
    shape, variants = result["shape"], result["variants"]
    ours, published = variants[OURS], variants[PUBLISHED]
    return [
        _device(result),
        f"{shape['hidden']} x {shape['vocabulary']}",
        f"{shape['requests']} x {shape['tokens']}",
        _seconds(result["bare"]["seconds"]),
        _seconds(published["seconds"]),
        _seconds(ours["seconds"]),
        f"{ours['speedup']:.1f}",
        f"{ours['gemm_multiple']:.2f}",
        f"{ours['peak_extra_bytes'] / 2**20:.0f}",
        _error(published["largest_difference"]),
        _error(ours["largest_difference"]),
        f"{result['roofline']['share']:.2f}" if "roofline" in result else "",
        f"`{file.name}`",
    ]


_SERVE = (
    "device",
    "shape",
    "workload",
    "concurrency",
    "tokens/s without",
    "tokens/s with",
    "throughput",
    "TTFT p50",
    "TTFT p99",
    "ITL p50",
    "ITL p99",
    "file",
)


def _serve_rows(file: Path, result: dict[str, Any]) -> Iterable[list[str]]:
    for entry in result["workloads"]:
        without, adapted = (entry[arm]["throughput"]["median"] for arm in ("off", "on"))
        yield [
            _device(result),
            result["shape"],
            entry["workload"] + (" (changed)" if entry["changed"] else ""),
            str(entry["concurrency"]),
            f"{without:.1f}",
            f"{adapted:.1f}",
            *(_ratio(entry["ratio"][name]) for name in entry["ratio"]),
            f"`{file.name}`",
        ]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _device(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return machine.get("gpu") or f"{machine['cores']} CPU cores"


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _ratio(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} [{spread['lowest']:.3f}, {spread['highest']:.3f}]"
