"""The benchmarks' tables are those of the committed logs."""

import json
from pathlib import Path

import pytest

from slot_vllm.bench.plot import plot
from slot_vllm.bench.table import table
from slot_vllm.bench.variants import settings_of_options
from tests.conftest import ROOT

LOGS = ROOT / "logs" / "bench"
KINDS = ("optimize", "burst", "apply")


def test_the_results_page_has_every_log() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- table -->\n")
    found, end, _ = rest.partition("<!-- end of table -->")
    files = [file for kind in KINDS for file in sorted(LOGS.glob(f"{kind}_*.json"))]
    assert end and found.strip() == table(files)


@pytest.mark.parametrize("file", sorted(LOGS.glob("optimize_*.json")), ids=lambda file: file.stem)
def test_our_deltas_are_the_nearer_ones_within_the_workspace(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    ours, published = (result["variants"][name] for name in ("ours", "published"))
    assert ours["largest_difference"] <= published["largest_difference"]
    assert ours["peak_extra_bytes"] <= (result["shape"]["workspace_mb"] + 64) << 20


def test_the_picture_is_of_the_committed_logs(tmp_path: Path) -> None:
    picture = ROOT / "docs" / "benchmarks.svg"
    files = sorted(LOGS.glob("optimize_cpu_[0-9]*.json"))
    plot(files, tmp_path / "new.svg")
    assert (tmp_path / "new.svg").read_text() == picture.read_text()


@pytest.mark.parametrize(
    ("name", "tokens", "steps"), [("16", 16, 5), ("64", 64, 5), ("256", 256, 5), ("1_step", 64, 1)]
)
def test_the_options_cost_is_of_what_they_are_now(name: str, tokens: int, steps: int) -> None:
    file = LOGS / f"optimize_cpu_options_{name}.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["shape"]["tokens"], result["shape"]["steps"]) == (tokens, steps)
    assert result["options"] == settings_of_options()
    assert set(result["options"]) < set(result["variants"])


def test_the_comparison_of_forms() -> None:
    result = json.loads((LOGS / "optimize_cpu_forms_256.json").read_text(encoding="utf-8"))
    variants = result["variants"]
    ours, plain = variants["ours"], variants["ours, plain form"]
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split())
    multiples = f"{ours['gemm_multiple']:.2f} bare products against {plain['gemm_multiple']:.2f}"
    errors = (plain["largest_difference"], variants["published"]["largest_difference"])
    assert multiples in page and "{:.3f} against {:.3f}".format(*errors) in page
