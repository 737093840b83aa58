"""The README's numbers are those of the committed logs."""

import json
from typing import Any

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "logs" / "reference"


def logged(path: str) -> Any:
    return json.loads((REFERENCE / path).read_text(encoding="utf-8"))


def estimate(value: float, interval: list[float], form: str) -> str:
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def test_the_quickstarts_table() -> None:
    baseline, slot = logged("quickstart/results.json")["arms"]
    assert (slot["steps"], slot["lr"]) == (5, 0.1)
    formats = baseline["breakdown"]["format"]
    rows = {name: (formats[name], slot["breakdown"]["format"][name]) for name in formats}
    for name, (without, adapted) in {**rows, "all": (baseline, slot)}.items():
        cells = [
            estimate(without["value"], without["interval"], ".3f"),
            estimate(adapted["value"], adapted["interval"], ".3f"),
            estimate(adapted["difference"], adapted["difference_interval"], "+.3f"),
        ]
        [line] = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
        assert line.endswith(f"| {' | '.join(cells)} |"), line
    assert f"(p = {slot['p_value']:.2g})" in README
    assert f"falls from {slot['first_loss']:.3f} to {slot['last_loss']:.3f} nats" in README


def test_the_sweeps_table() -> None:
    [sweep] = logged("sweep_demo/results.json")["sweeps"]
    values: dict[int, list[str]] = {}
    for cell in sweep["cells"]:
        if cell["steps"]:
            values.setdefault(cell["steps"], []).append(f"{cell['value']:.3f}")
            lower = cell["difference"] < 0
            assert cell["p_value_holm"] > 0.05 or lower, "a setting helps, and the README denies it"
        else:
            assert f"(baseline: {cell['value']:.3f})" in README
    assert "| steps \\ lr | " + " | ".join(f"{lr:g}" for lr in sweep["lr"]) + " |" in README
    for steps, row in values.items():
        assert f"| {steps} | {' | '.join(row)} |" in README
    [best] = [cell for cell in sweep["cells"] if cell["arm"] == sweep["best"]]
    low, high = best["difference_interval"]
    gain = (
        f"gains {best['difference']:.4f} [{low:+.4f}, {high:+.4f}] (p = {best['p_value_holm']:.2g}"
    )
    assert f"steps {best['steps']}, lr {best['lr']:g}, {gain} corrected for 25 settings)" in README


def test_the_tokens_that_delta_moves() -> None:
    [inspection] = logged("quickstart/inspection.json")
    raised, lowered = inspection["raised"], inspection["lowered"]
    assert {f"{token['shift']:.2f}" for token in raised} <= {"0.52", "0.53"}
    said = ", ".join(f"`{token['token']}`" for token in lowered[1:4])
    assert (
        f"`{lowered[0]['token']}` (by {-lowered[0]['shift']:.3f}), {said} and digits"
        in " ".join(README.split())
    )
    assert any(token["token"].strip("'").isdecimal() for token in lowered)


def test_what_prefix_sharing_gains() -> None:
    page = " ".join((ROOT / "docs/prefix_cache.md").read_text(encoding="utf-8").split())
    for name, form in {
        "prefix_cpu": "it is {} times faster with blocks of 32 tokens "
        "(`logs/bench/prefix_cpu.json`; rounds from {} to {})",
        "prefix_cpu_128": "and {} times with vLLM's 128 (`prefix_cpu_128.json`; {} to {})",
    }.items():
        result = json.loads((ROOT / f"logs/bench/{name}.json").read_text(encoding="utf-8"))
        rounds = result["speedup_by_round"]
        numbers = (result["speedup"], min(rounds), max(rounds))
        assert form.format(*(f"{n:.1f}" for n in numbers)) in page
        assert result["speedup"] >= 5 or name == "prefix_cpu_128"
