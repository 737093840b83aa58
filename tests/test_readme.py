"""The README's numbers are those of the committed logs."""

import json
from typing import Any

from tests.conftest import ROOT

RESULTS = ROOT / "logs/reference/quickstart/results.json"


def row(arm: dict[str, Any]) -> str:
    """One arm's row of the README's table."""
    slot = arm["steps"] > 0
    cells = [
        arm["task"],
        arm["name"],
        str(arm["steps"]) if slot else "-",
        f"{arm['lr']:g}" if slot else "-",
        arm["metric"],
        f"{arm['value']:.4f} [{arm['interval'][0]:.4f}, {arm['interval'][1]:.4f}]",
        f"{arm['first_loss']:.3f} → {arm['last_loss']:.3f}" if slot else "-",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_quickstarts_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    arms = json.loads(RESULTS.read_text(encoding="utf-8"))["arms"]
    assert len(arms) == 2
    for arm in arms:
        assert row(arm) in readme, row(arm)
