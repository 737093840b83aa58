"""A few architectures beyond those of the conformance tests, and what counts as wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import check_architectures
from make_tiny_model import ARCHITECTURES

from tests.engine.architecture import Outcome
from tests.engine.cases import Answer, Case

# A bias, through vLLM's Transformers backend; a scale below 1 of what the embeddings are; norms
# and windows of its own.
SHORT = ("phi", "granite", "gemma3_text")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts/check_architectures.py")
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "names",
    [SHORT, pytest.param(tuple(set(ARCHITECTURES) - set(SHORT)), marks=pytest.mark.full)],
    ids=["short", "all others"],
)
def test_they_are_exact_or_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    done = run(*names, "--write", str(table))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = [line.split(" | ") for line in table.read_text().splitlines() if " | exact | " in line]
    # DeepSeek-V2 is not comparable.
    assert len(rows) == len(names) - ("deepseek_v2" in names)
    if names == SHORT:
        assert [row[0] for row in rows] == ["| gemma3_text", "| granite", "| phi"]
        assert "scale 2" in rows[1][2] and "bias" in rows[2][2]


def test_an_unknown_name() -> None:
    done = run("qwen9")
    assert done.returncode == 2 and "unknown: qwen9; allowed: " in done.stderr


CASES = [Case((5, 6, 7), 5, 0.1, 3), Case((5, 6, 7), 0, 0.1, 3)]
EXPECTED = [
    Answer([1, 2, 3], [0.5, 0.0005, 0.5], [0.25, -0.5], []),
    Answer([1, 2, 3], [0.5, 0.5, 0.5], [0.0, 0.0], []),
]


@pytest.mark.parametrize(
    ("tokens", "delta", "result", "ties"),
    [
        ([1, 2, 3], [0.25, -0.5], "exact", 0),
        ([1, 4, 5], [0.25, -0.50019], "exact", 1),
        ([4, 2, 3], [0.25, -0.5], "wrong: prompt 0, token 0", 0),
        ([1, 2, 3], [0.25, -0.4997], "wrong: prompt 0, delta", 0),
        ([1, 2, 3], [float("nan"), -0.5], "wrong: prompt 0, delta", 0),
        ([1, 2, 3], None, "wrong: prompt 0, delta", 0),
    ],
)
def test_what_counts_as_wrong(
    tokens: list[int], delta: list[float] | None, result: str, ties: int
) -> None:
    outcome = Outcome(None, "Class", "head", [tokens, [1, 2, 3]], [delta, None])
    row = check_architectures.compare("qwen2", outcome, CASES, EXPECTED)
    assert (row.result, row.ties) == (result, ties)
    assert row.good == (result == "exact")


@pytest.mark.parametrize(
    ("alone", "result"), [([1, 2, 3], "wrong: "), ([7, 2, 3], "not comparable: vLLM without SLOT")]
)
def test_wrong_is_not_blamed_on_vllm_unless_vllm_alone_is_wrong(
    alone: list[int], result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_architecture(model: str, cases: list[Case], slot: bool) -> Outcome:
        assert not slot and not any(case.steps for case in cases)
        return Outcome(None, "", "", [alone for _ in cases], [None for _ in cases])

    monkeypatch.setattr(check_architectures, "run_architecture", run_architecture)
    monkeypatch.setattr(
        check_architectures, "reference", lambda _, cases: EXPECTED[1:] * len(cases)
    )
    row = check_architectures.Row("qwen2", "Class", "head", "wrong: prompt 0, delta", 0, 2.0)
    assert check_architectures.blame(row, "model").result.startswith(result)


def test_a_refusal_is_shown() -> None:
    outcome = Outcome("SLOT needs one linear head", "", "", [], [])
    row = check_architectures.compare("mamba", outcome, CASES, EXPECTED)
    assert row.good
    assert row.line() == "| mamba |  |  | refused: SLOT needs one linear head |  |  |"


def test_a_row_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    for name, result in (("qwen2", "wrong"), ("llama", "exact"), ("qwen2", "exact")):
        check_architectures.write(check_architectures.Row(name, "C", "h", result, 0, 0.5), table)
    rows = [line for line in table.read_text().splitlines() if " | C | " in line]
    assert rows == [
        "| llama | C | h | exact | 0 | 0.500 |",
        "| qwen2 | C | h | exact | 0 | 0.500 |",
    ]
    assert table.read_text().startswith("# Architectures")


def test_the_committed_table_has_nothing_wrong() -> None:
    lines = (ROOT / "docs/architectures.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    results = [row[3] for row in rows if row[0].removeprefix("| ") in ARCHITECTURES]
    allowed = ("exact", "refused: ", check_architectures.NOT_COMPARABLE)
    assert all(result.startswith(allowed) for result in results)
    assert results.count("exact") >= 15
