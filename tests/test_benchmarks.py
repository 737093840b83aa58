"""The benchmarks' tables are those of the committed logs."""

from pathlib import Path

import pytest

from slot_vllm.bench.plot import plot
from slot_vllm.bench.table import table
from tests.conftest import ROOT

LOGS = ROOT / "logs" / "bench"
KINDS = ("optimize", "serve", "apply")


def tables(page: str) -> list[str]:
    """The rows of the page's tables whose last column names a file."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and line.endswith(".json` |")]


def test_the_results_page_has_every_log() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- table -->\n")
    found, end, _ = rest.partition("<!-- end of table -->")
    files = [file for kind in KINDS for file in sorted(LOGS.glob(f"{kind}_*.json"))]
    assert end and found.strip() == table(files)


def test_every_row_of_the_readme_is_of_its_file() -> None:
    for row in tables("README.md"):
        file = LOGS / row.split("`")[-2]
        assert row in table([file]).splitlines(), row


def test_the_picture_is_of_the_committed_logs(tmp_path: Path) -> None:
    picture = ROOT / "docs" / "benchmarks.svg"
    if not picture.exists():
        pytest.skip("no picture yet")
    files = sorted(LOGS.glob("optimize_cpu_[0-9]*.json"))
    plot(files, tmp_path / "new.svg")
    assert (tmp_path / "new.svg").read_text() == picture.read_text()
