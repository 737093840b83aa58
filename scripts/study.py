"""The study's problems, and the tables and pictures of its report (docs/study.md).

python scripts/study.py problems   # writes configs/data/study_*.jsonl
python scripts/study.py report     # writes the report's tables and pictures, from the logs
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo_problems import FORMATS, Problem
from train_demo_model import MODELS, easy_training, fresh, held_out, training

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "configs" / "data"
LOGS = ROOT / "logs" / "reference" / "study"
PAGE = ROOT / "docs" / "study.md"

# Formats that are rare in what some model was trained on, or missing from it.
RARE = ("repeated", "last_digit", "prefixed", "halves")
ALL = tuple(form.name for form in FORMATS)
# Problems of each format, and whether they are easy, as those of the second part of the training
# are; none is in two sets, or among those that a model was trained on.
SETS = {
    "study_select": (ALL, 50, False),
    "study_easy": (ALL, 50, True),
    "study_easy_select": (ALL, 50, True),
    "study_rare_select": (RARE, 100, True),
    "study_rare_claim": (RARE, 250, True),
    "study_demo_rare_select": (RARE, 100, False),
    "study_demo_rare_claim": (RARE, 200, False),
    "study_demo_halves_claim": (("halves",), 400, False),
    "study_easy_claim": (ALL, 125, True),
}

MODES = ("paper", "safe")
# Points of accuracy that no cell of a safe mode may lose.
MOST_LOST = 0.03
ALPHA = 0.05
BEST = 8  # settings of a search that are shown
_ACROSS = 3  # pictures beside each other
SCORES = ("exact", "arithmetic", "adherence")

Entry = Mapping[str, Any]


def problems() -> dict[str, list[Problem]]:
    """The problems of each set."""
    tested = {p.text for p in held_out()}
    seen = set(tested)
    for recipe in MODELS.values():
        seen |= {p.text for p in training(recipe, random.Random(recipe.seed), tested)}
        seen |= {p.text for part in easy_training(recipe, tested) for p in part}
    found = {}
    for name, (formats, count, easy) in SETS.items():
        wanted = [form for form in FORMATS if form.name in formats]
        found[name] = fresh(random.Random(name), wanted, count, seen, easy)
        seen |= {p.text for p in found[name]}
    return found


def lines(asked: Sequence[Problem]) -> str:
    """In AIME's schema, with the format and the number that is to be written in it."""
    rows = [
        {
            "id": i,
            "problem": p.text,
            "answer": p.answer,
            "format": p.format.name,
            "number": p.number,
        }
        for i, p in enumerate(asked)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def results(name: str) -> dict[str, Any]:
    """``results.json`` of one of the study's runs."""
    return dict(json.loads((LOGS / name / "results.json").read_text(encoding="utf-8")))


def cells(model: str, mode: str) -> list[Entry]:
    """Of the grid, without the baseline."""
    [sweep] = results(f"grid_{model}_{mode}")["sweeps"]
    return [cell for cell in sweep["cells"] if cell["steps"]]


def harmed(grid: Iterable[Entry]) -> list[Entry]:
    """The cells that are significantly below the baseline, corrected for all of the grid."""
    return [c for c in grid if c["difference"] < 0 and c["p_value_holm"] <= ALPHA]


def setting(cell: Entry) -> str:
    return f"{cell['steps']}, {cell['lr']:g}"


def estimate(entry: Entry) -> str:
    """A difference in points, with its interval and Holm's p."""
    low, high = (100 * bound for bound in entry["difference_interval"])
    p = f", p = {entry['p_value_holm']:.2g}" if "p_value_holm" in entry else ""
    return f"{100 * entry['difference']:+.1f} [{low:+.1f}, {high:+.1f}]{p}"


def grid_table() -> str:
    head = (
        "model",
        "mode",
        "baseline",
        "worst cell (steps, lr)",
        "best cell (steps, lr)",
        "cells significantly below",
        "cells more than 3 points below",
        "cells significantly above",
    )
    rows = []
    for model in MODELS:
        for mode in MODES:
            grid = cells(model, mode)
            [baseline] = [
                arm for arm in results(f"grid_{model}_{mode}")["arms"] if arm["name"] == "baseline"
            ]
            worst, best = (f(grid, key=lambda c: c["difference"]) for f in (min, max))
            rows.append(
                (
                    model,
                    mode,
                    f"{100 * baseline['value']:.1f} %",
                    f"{setting(worst)}: {estimate(worst)}",
                    f"{setting(best)}: {estimate(best)}",
                    str(len(harmed(grid))),
                    str(sum(c["difference"] < -MOST_LOST for c in grid)),
                    str(sum(c["difference"] > 0 and c["p_value_holm"] <= ALPHA for c in grid)),
                )
            )
    return markdown(head, rows)


def summary() -> str:
    """What the grids and the claims come to, in sentences."""
    said = []
    for mode in MODES:
        grid = [cell for model in MODELS for cell in cells(model, mode)]
        worst = min(grid, key=lambda c: c["difference"])
        best = max(grid, key=lambda c: c["difference"])
        above = [c for c in grid if c["difference"] > 0 and c["p_value_holm"] <= ALPHA]
        said.append(
            f"- `{mode}`, {len(grid)} cells of three models: {len(harmed(grid))} significantly "
            f"below the baseline, {sum(c['difference'] < -MOST_LOST for c in grid)} more than 3 "
            f"points below, {len(above)} significantly above. The worst is steps, lr "
            f"{setting(worst)} with {estimate(worst)}, the best {setting(best)} with "
            f"{estimate(best)}."
        )
    applied = ", ".join(
        f"{model} {100 * cell['applied']:.1f} %"
        for model in MODELS
        for cell in cells(model, "safe")
        if (cell["steps"], cell["lr"]) == (5, 0.01)
    )
    said.append(f"- With `safe` at steps 5, lr 0.01 something of delta is left on: {applied}.")
    for path in sorted(LOGS.glob("claim_*")):
        claimed = arms(path.name)
        helps = [a for a in claimed if a["difference"] > 0 and a["p_value_holm"] <= ALPHA]
        best = max(claimed, key=lambda a: a["difference"])
        said.append(
            f"- {path.name.removeprefix('claim_')}: of {len(claimed)} settings that were chosen on "
            f"other problems {len(helps)} give significantly more exact answers; the best, "
            f"`{best['name']}`: {estimate(best)}."
        )
    return "\n".join(said)


def applied_table() -> str:
    """Of safe: the share of prompts with a delta, and the mean scale."""
    return "\n\n".join(
        square(
            model,
            cells(model, "safe"),
            lambda c: f"{100 * c['applied']:.0f} %, {c['scale']:.3f}",
        )
        for model in MODELS
    )


def selection_table(name: str) -> str:
    """Of the safeguards that were tried, by cell: exact answers and, in brackets, the share of
    prompts with a delta."""
    groups: dict[str, dict[str, Entry]] = {}
    for arm in searched(name):
        safeguard = arm["name"].rsplit("-s", 1)[0]
        groups.setdefault(safeguard, {})[setting(arm["settings"])] = arm
    columns = list(dict.fromkeys(cell for group in groups.values() for cell in group))
    rows = [
        [
            f"`{safeguard}`",
            *(
                f"{100 * group[c]['metrics']['exact']['difference']:+.1f} "
                f"({100 * group[c]['applied']:.0f} %)"
                for c in columns
            ),
        ]
        for safeguard, group in groups.items()
    ]
    return markdown(("safeguard", *columns), rows)


def searched(name: str) -> list[Entry]:
    """Of a search or a selection, without the baseline."""
    found = json.loads((LOGS / f"{name}.json").read_text(encoding="utf-8"))
    return [arm for arm in found["arms"] if arm["name"] != "baseline"]


def arms(name: str) -> list[Entry]:
    """Of a run, without the baseline."""
    return [arm for arm in results(name)["arms"] if arm["name"] != "baseline"]


def judged(arm: Entry) -> list[str]:
    return [estimate(arm["metrics"][score]) for score in SCORES]


def search_table(name: str) -> str:
    """The settings that gave most exact answers on the selection set, and what they did to halves,
    the rarest format."""
    found = [own(name), *sorted(searched(name), key=lambda a: -a["metrics"]["exact"]["value"])]
    rows = []
    for arm in found[: BEST + 1]:
        halves = arm["formats"]["halves"]
        shares = f"{100 * halves['exact']:.0f} %, {100 * halves['adherence']:.0f} %"
        scores = judged(arm) if "settings" in arm else shown(arm)
        rows.append((f"`{arm['name']}`", *scores, shares))
    return markdown(("setting", *SCORES, "halves: exact, adherence"), rows)


def own(name: str) -> Entry:
    """The baseline of a search."""
    found = json.loads((LOGS / f"{name}.json").read_text(encoding="utf-8"))
    return dict(found["arms"][0])


def shown(arm: Entry) -> list[str]:
    return [f"{100 * arm['metrics'][score]['value']:.1f} %" for score in SCORES]


def claim_table(name: str) -> str:
    """The settings that were chosen, on problems that they were not chosen on."""
    [baseline] = [arm for arm in results(name)["arms"] if arm["name"] == "baseline"]
    rows = [
        ("`baseline`", *shown(baseline)),
        *((f"`{arm['name']}`", *judged(arm)) for arm in arms(name)),
    ]
    return markdown(("setting", *SCORES), rows)


def formats_table(name: str) -> str:
    """Exact answers of a run by format."""
    forms = list(results(name)["arms"][0]["breakdown"]["format"])
    rows = []
    for arm in results(name)["arms"]:
        groups = [arm["breakdown"]["format"][form] for form in forms]
        texts = [
            estimate(group) if "difference" in group else f"{100 * group['value']:.1f} %"
            for group in groups
        ]
        rows.append((f"`{arm['name']}`", *texts))
    return markdown(("setting", *forms), rows)


def draw_grids(output: Path) -> None:
    """Each model's grid in each mode: differences in points; a star where Holm's p is small."""
    figure = _figure(9, 2.6 * len(MODELS))
    for row, model in zip(figure.subplots(len(MODELS), 2), MODELS, strict=True):
        for axes, mode in zip(row, MODES, strict=True):
            grid = cells(model, mode)
            rates = list(dict.fromkeys(cell["lr"] for cell in grid))
            counts = list(dict.fromkeys(cell["steps"] for cell in grid))
            found = {(cell["steps"], cell["lr"]): cell for cell in grid}
            values = [[100 * found[s, lr]["difference"] for lr in rates] for s in counts]
            axes.imshow(values, cmap="RdBu", vmin=-20, vmax=20, aspect="auto")
            for y, steps in enumerate(counts):
                for x, lr in enumerate(rates):
                    value = values[y][x]
                    star = "*" if found[steps, lr]["p_value_holm"] <= ALPHA else ""
                    colour = "white" if abs(value) > 14 else "black"
                    axes.text(x, y, f"{value:+.1f}{star}", ha="center", va="center", color=colour)
            axes.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
            axes.set_yticks(range(len(counts)), [str(steps) for steps in counts])
            axes.set_xlabel("lr")
            axes.set_ylabel("steps")
            axes.set_title(f"{model}, {mode}: points against the baseline", fontsize=10)
    _save(figure, output)


def draw_searches(output: Path) -> None:
    """Every setting of the searches: what it does to adherence and to arithmetic, in points."""
    names = [path.stem for path in sorted(LOGS.glob("search_*.json"))]
    rows = -(-len(names) // _ACROSS)
    figure = _figure(4.5 * _ACROSS, 4 * rows)
    grid = figure.subplots(rows, _ACROSS, squeeze=False).flat
    for axes in grid[len(names) :]:
        axes.remove()
    for axes, name in zip(grid, names, strict=False):
        points = [
            [100 * arm["metrics"][score]["difference"] for score in ("arithmetic", "adherence")]
            for arm in searched(name)
        ]
        exact = [100 * arm["metrics"]["exact"]["difference"] for arm in searched(name)]
        drawn = axes.scatter(
            *zip(*points, strict=True), c=exact, cmap="RdBu", vmin=-20, vmax=20, edgecolors="0.5"
        )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("right numbers, points against the baseline")
        axes.set_ylabel("adherence, points against the baseline")
        axes.set_title(name.removeprefix("search_"), fontsize=10)
    figure.colorbar(drawn, ax=list(figure.axes), label="exact answers, points")
    _save(figure, output)


def _figure(width: float, height: float) -> Any:
    # It takes a second to import, and the problems do without it.
    import matplotlib
    from matplotlib.figure import Figure

    # The same picture is the same file.
    matplotlib.rcParams["svg.hashsalt"] = "slot-vllm"
    matplotlib.rcParams["svg.fonttype"] = "none"
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def _save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None})


def square(title: str, grid: Sequence[Entry], text: Callable[[Entry], str]) -> str:
    rates = list(dict.fromkeys(cell["lr"] for cell in grid))
    rows = [
        [
            str(steps),
            *(text(c) for lr in rates for c in grid if (c["steps"], c["lr"]) == (steps, lr)),
        ]
        for steps in dict.fromkeys(cell["steps"] for cell in grid)
    ]
    return markdown((f"{title}: steps \\ lr", *(f"{lr:g}" for lr in rates)), rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def tables() -> dict[str, str]:
    """What stands between the page's marks, by their names."""
    found = {"summary": summary(), "grid": grid_table(), "applied": applied_table()}
    for kind, table in {"selection": selection_table, "search": search_table}.items():
        for path in sorted(LOGS.glob(f"{kind}_*.json")):
            found[path.stem] = table(path.stem)
    for path in sorted(LOGS.glob("claim_*")):
        found[path.name] = claim_table(path.name)
    for path in sorted(LOGS.glob("claim_*")):
        found[f"{path.name}_formats"] = formats_table(path.name)
    return found


def filled(page: str) -> str:
    """The page with every table between its marks: ``<!-- NAME -->`` and ``<!-- end -->``."""
    for name, table in tables().items():
        mark, end = f"<!-- {name} -->\n", "<!-- end -->"
        if mark in page:
            before, _, rest = page.partition(mark)
            _, _, after = rest.partition(end)
            page = f"{before}{mark}{table}\n{end}{after}"
    return page


def draw(directory: Path) -> None:
    """Writes the pictures."""
    draw_grids(directory / "grids.svg")
    draw_searches(directory / "searches.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["problems", "report"])
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of where they belong")
    options = parser.parse_args()
    if options.what == "problems":
        for name, asked in problems().items():
            file = (options.output or DATA) / f"{name}.jsonl"
            file.write_text(lines(asked), encoding="utf-8")
        return
    page = filled(PAGE.read_text(encoding="utf-8"))
    output = options.output or PAGE.parent
    (output / PAGE.name).write_text(page, encoding="utf-8")
    draw(output / PAGE.stem)


if __name__ == "__main__":
    main()
