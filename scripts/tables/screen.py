"""What scripts/screen_settings.py found: the gains over no SLOT."""

import json
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation.record import BASELINE
from tables.markdown import table


def screen(file: Path, _: Sequence[str]) -> str:
    found = json.loads(file.read_text(encoding="utf-8"))
    measures = list(found["scores"][BASELINE])
    rows = []
    for name, scores in found["scores"].items():
        settings = ", ".join(f"`{key}: {value}`" for key, value in found["settings"][name].items())
        gains = [
            f"{scores[m]['mean']:.3f}"
            if name == BASELINE
            else f"{scores[m]['gain']:+.3f} ± {scores[m]['error']:.3f}"
            for m in measures
        ]
        rows.append([f"`{name}`", settings, *gains])
    return table(["setting", "is", *measures], rows)
