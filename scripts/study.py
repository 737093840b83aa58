"""The study's problems, and the tables and pictures of its report (docs/study.md).

python scripts/study.py problems   # configs/data/study_*.jsonl
python scripts/study.py report     # docs/study.md between its marks, docs/study/*.svg
"""

import argparse
import json
import random
from pathlib import Path

from demo_problems import FORMATS, Problem
from train_demo_model import MODELS, fresh, held_out, training

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "configs" / "data"

# Formats that are rare in what some model was trained on, or missing from it.
RARE = ("repeated", "last_digit", "prefixed", "halves")
# Problems of each format; none is in two sets, or among those that a model was trained on.
SETS = {
    "study_select": (tuple(form.name for form in FORMATS), 50),
    "study_rare_select": (RARE, 100),
    "study_rare_claim": (RARE, 250),
}


def problems() -> dict[str, list[Problem]]:
    """The problems of each set."""
    tested = {p.text for p in held_out()}
    seen = set(tested)
    for recipe in MODELS.values():
        seen |= {p.text for p in training(recipe, random.Random(recipe.seed), tested)}
    found = {}
    for name, (formats, count) in SETS.items():
        wanted = [form for form in FORMATS if form.name in formats]
        found[name] = fresh(random.Random(name), wanted, count, seen)
        seen |= {p.text for p in found[name]}
    return found


def lines(asked: list[Problem]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["problems"])
    parser.parse_args()
    for name, asked in problems().items():
        (DATA / f"{name}.jsonl").write_text(lines(asked), encoding="utf-8")


if __name__ == "__main__":
    main()
