"""``table``: a markdown table per kind of benchmark, from their JSON files."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slot_vllm.bench.apply import BIAS, EXTRA_ROWS, PLAIN
from slot_vllm.bench.variants import OPTIONS, OURS, PUBLISHED


def add_command(commands: Any) -> None:
    """Adds ``table`` to argparse's subparsers."""
    parser = commands.add_parser("table", help=__doc__.partition(":")[2].split(".")[0].strip())
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    print(table(options.files))
    return 0


def table(files: Sequence[Path]) -> str:
    """The files in their order, kind by kind: optimize, burst, apply.

    Raises ValueError for a file of another kind.
    """
    results: dict[str, list[tuple[Path, dict[str, Any]]]] = {
        kind: [] for kind in ("optimize", "burst", "apply")
    }
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        kind = result.get("benchmark") if isinstance(result, dict) else None
        if kind not in results:
            raise ValueError(
                f"{file}: not written by python -m slot_vllm.bench {', '.join(results)}"
            )
        results[kind].append((file, result))
    parts = []
    if results["optimize"]:
        parts.append(_markdown(_OPTIMIZE, (_optimize_row(*one) for one in results["optimize"])))
        options = [row for one in results["optimize"] for row in _option_rows(*one)]
        if options:
            parts.append(_markdown(_OPTIONS, options))
    if results["burst"]:
        rows = (row for one in results["burst"] for row in _burst_rows(*one))
        parts.append(_markdown(_BURST, rows))
    if results["apply"]:
        rows = (row for one in results["apply"] for row in _apply_rows(*one))
        parts.append(_markdown(_APPLY, rows))
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
    "floor_multiple",
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
        f"{result['floor_multiple']:.2f}" if "floor_multiple" in result else "",
        f"`{file.name}`",
    ]


_OPTIONS = (
    "device",
    "d x V",
    "requests x tokens",
    "option",
    "paper (s)",
    "seconds",
    "multiple of paper",
    "peak extra (MiB)",
    "file",
)


def _option_rows(file: Path, result: dict[str, Any]) -> Iterable[list[str]]:
    shape, variants = result["shape"], result["variants"]
    for name in OPTIONS:
        if name in variants:
            yield [
                _device(result),
                f"{shape['hidden']} x {shape['vocabulary']}",
                f"{shape['requests']} x {shape['tokens']}",
                f"`{name}`",
                _seconds(variants[OURS]["seconds"]),
                _seconds(variants[name]["seconds"]),
                f"{variants[name]['paper_multiple']:.2f}",
                f"{variants[name]['peak_extra_bytes'] / 2**20:.0f}",
                f"`{file.name}`",
            ]


_BURST = (
    "device",
    "shape",
    "running",
    "burst x tokens",
    "arm",
    "ITL before p50 (ms)",
    "ITL p50 (ms)",
    "ITL p99 (ms)",
    "ITL max (ms)",
    "TTFT p50 (s)",
    "TTFT max (s)",
    "file",
)


def _burst_rows(file: Path, result: dict[str, Any]) -> Iterable[list[str]]:
    settings = result["settings"]
    for name, arm in result["arms"].items():
        found = arm["figures"]
        yield [
            _device(result),
            result["shape"],
            str(settings["running"]),
            f"{settings['burst']} x {settings['burst_tokens']}",
            name,
            *(
                _interval(found[figure], 1e3)
                for figure in ("before_p50", "itl_p50", "itl_p99", "itl_max")
            ),
            *(_interval(found[figure], 1) for figure in ("ttft_p50", "ttft_max")),
            f"`{file.name}`",
        ]


_APPLY = (
    "device",
    "d x V",
    "rows",
    "plain product (ms)",
    "with bias",
    "with extra rows",
    "error, bias",
    "error, extra rows",
    "bytes each, bias",
    "bytes each, extra rows",
    "file",
)


def _apply_rows(file: Path, result: dict[str, Any]) -> Iterable[list[str]]:
    shape = result["shape"]
    for step in result["steps"]:
        plain, bias, extra = (step["variants"][name] for name in (PLAIN, BIAS, EXTRA_ROWS))
        yield [
            _device(result),
            f"{shape['hidden']} x {shape['vocab']}",
            str(step["rows"]),
            f"{plain['seconds'] * 1e3:.3g}",
            f"{bias['ratio']:.2f}",
            f"{extra['ratio']:.2f}",
            _error(bias["error"]),
            _error(extra["error"]),
            str(bias["bytes_per_request"]),
            str(extra["bytes_per_request"]),
            f"`{file.name}`",
        ]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _device(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if machine.get("gpu"):
        return str(machine["gpu"])
    kernels = ", torch alone" if result.get("kernels") == "torch" else ""
    return f"{machine['cores']} CPU cores{kernels}"


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _interval(spread: dict[str, float], unit: float) -> str:
    median, lowest, highest = (spread[name] * unit for name in ("median", "lowest", "highest"))
    return f"{median:.4g} [{lowest:.4g}, {highest:.4g}]"
