"""What scripts/check_architectures.py found: a row per architecture, a column per model runner."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables.markdown import table


def architectures(file: Path, _: Sequence[str]) -> str:
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["architecture"]][row["runner"]] = row
    rows = []
    for name, runners in sorted(found.items()):
        # Of one that does not start on one of them, the other knows.
        known = max(runners.values(), key=lambda row: len(row["head"]))
        outcomes = (_outcome(runners.get(runner)) for runner in ("v2", "v1"))
        rows.append([name, known["implementation"], known["head"], *outcomes])
    return table(["architecture", "vLLM's class", "head", "V2", "V1"], rows)


def _outcome(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    said: str = row["result"].replace("|", "/")
    if row["error"] is None:
        return said
    ties = f"{row['ties']} near tie{'s' * (row['ties'] > 1)}, " if row["ties"] else ""
    return f"{said}; {ties}{row['error']:.3f}"
