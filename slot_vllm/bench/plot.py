"""``plot``: speedup and gemm_multiple over the prompt's length, from JSON files of ``optimize``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.bench.variants import OURS, PUBLISHED

_PANELS = {
    "speedup": "speedup over the published loop",
    "gemm_multiple": "time in bare head products (gemm_multiple)",
}
_STYLES = {OURS: ("ours", "#1f77b4", "o"), PUBLISHED: ("published loop", "#d62728", "s")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG_OR_SVG")


def run(options: argparse.Namespace) -> int:
    plot(options.files, options.output)
    print(options.output)
    return 0


def curves(files: Sequence[Path]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """figure -> variant -> (tokens, value), by tokens.

    Raises ValueError for a file that ``optimize`` did not write, for several requests at once and
    for files that differ in more than the prompt's length.
    """
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    shapes = set()
    for file, result in zip(files, results, strict=True):
        if result.get("benchmark") != "optimize" or result["shape"]["requests"] != 1:
            raise ValueError(f"{file}: not of one request by python -m slot_vllm.bench optimize")
        # Older files say nothing of rows that requests share.
        shape = {"shared": 0, **result["shape"]}
        shapes.add(tuple(sorted((k, v) for k, v in shape.items() if k != "tokens")))
    if len(shapes) > 1:
        raise ValueError(f"the files differ in more than the prompt's length: {sorted(shapes)}")
    results.sort(key=lambda result: result["shape"]["tokens"])
    return {
        figure: {
            variant: [(r["shape"]["tokens"], r["variants"][variant][figure]) for r in results]
            for variant in _STYLES
        }
        for figure in _PANELS
    }


def plot(files: Sequence[Path], output: Path) -> None:
    """Writes the picture, on white, so that it can be read on a dark page too."""
    # It takes a second to import, and the other commands do without it.
    import matplotlib
    from matplotlib.figure import Figure

    found = curves(files)
    shape = json.loads(files[0].read_text(encoding="utf-8"))["shape"]
    # The same picture is the same file.
    matplotlib.rcParams["svg.hashsalt"] = "slot-vllm"
    figure = Figure(figsize=(9, 3.4), facecolor="white", layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for variant, points in found[name].items():
            label, colour, marker = _STYLES[variant]
            tokens, values = zip(*points, strict=True)
            axes.plot(tokens, values, color=colour, marker=marker, label=label)
            for x, y in points:
                axes.annotate(f"{y:.1f}", (x, y), (0, 6), textcoords="offset points", ha="center")
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks(tokens, [str(x) for x in tokens])
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylim(0, 1.15 * max(y for points in found[name].values() for _, y in points))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.suptitle(
        f"d {shape['hidden']}, V {shape['vocabulary']}, {shape['steps']} steps, {shape['dtype']}, "
        f"{shape['device']}",
        fontsize=10,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if output.suffix == ".svg" else {}
    figure.savefig(output, dpi=150, metadata=metadata)
