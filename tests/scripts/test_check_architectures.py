"""A few architectures beyond those of the conformance tests, and what counts as wrong."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "names",
    [SHORT, pytest.param(tuple(set(ARCHITECTURES) - set(SHORT)), marks=pytest.mark.full)],
    ids=["short", "all others"],
)
def test_they_are_exact_or_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = [sys.executable, str(ROOT / "scripts/check_architectures.py"), *names]
    done = subprocess.run(
        [*command, "--write", str(table)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = [line.split(" | ") for line in table.read_text().splitlines() if " | exact | " in line]
    # Of Bloom, vLLM computes another GELU.
    assert len(rows) == len(names) - ("bloom" in names)
    others = [line for line in table.read_text().splitlines() if line.startswith("| bloom")]
    assert all(f" | {check_architectures.ON_OWN} (" in line for line in others)
    assert len(others) == ("bloom" in names)
    if names == SHORT:
        assert [row[0] for row in rows] == ["| gemma3_text", "| granite", "| phi"]
        assert "scale 2" in rows[1][2] and "bias" in rows[2][2]


def test_an_unknown_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_architectures.py", "qwen9"])
    with pytest.raises(SystemExit) as stopped:
        check_architectures.main()
    assert stopped.value.code == 2
    assert "unknown: qwen9; allowed: " in capsys.readouterr().err


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


# What SLOT gave, on hidden states that are not those of transformers; EXPECTED are its answers.
TRANSFORMERS = [replace(answer, last_hidden=[0.5, 0.5]) for answer in EXPECTED]
OUTCOME = Outcome(
    None,
    "Class",
    "head",
    tokens=[[4, 2, 3], [1, 2, 3]],
    deltas=[[0.375, -0.5], None],
    last_hidden=[[0.5, 0.625], [0.5, 0.5]],
    own=[
        Answer([4, 2, 3], [0.5, 0.5, 0.5], [0.375, -0.5], []),
        Answer([1, 2, 3], [0.5, 0.5, 0.5], [0.0, 0.0], []),
    ],
)
PLAIN = replace(OUTCOME, tokens=[[7, 8, 9], [1, 2, 3]], deltas=[None, None])


@pytest.mark.parametrize(
    ("outcome", "plain", "idle", "result"),
    [
        ({}, {}, {}, "exact on vLLM's hidden states (1e-01 from transformers')"),
        (
            {"deltas": [[0.376, -0.5], None]},
            {},
            {},
            "wrong: prompt 0, delta, on vLLM's hidden states",
        ),
        (
            {"tokens": [[4, 2, 5], [1, 2, 3]]},
            {},
            {},
            "wrong: prompt 0, token 2, on vLLM's hidden states",
        ),
        (
            {},
            {},
            {"tokens": [[7, 8, 8], [1, 2, 3]]},
            "wrong: with slot_steps 0 other tokens than vLLM's",
        ),
        (
            {},
            {"last_hidden": [[0.5, 0.75], [0.5, 0.5]]},
            {},
            "wrong: other hidden states than vLLM's",
        ),
        (
            {"last_hidden": [[float("nan"), 0.625], [0.5, 0.5]]},
            {},
            {},
            "wrong: other hidden states than vLLM's",
        ),
        (
            {"last_hidden": [[0.5, 0.50005], [0.5, 0.5]]},
            {"last_hidden": [[0.5, 0.50005], [0.5, 0.5]]},
            {},
            "wrong: prompt 0, token 0; prompt 0, delta",
        ),
    ],
)
def test_wrong_is_blamed_on_vllm_only_if_slot_is_exact_on_what_it_computes(
    outcome: dict[str, Any],
    plain: dict[str, Any],
    idle: dict[str, Any],
    result: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run_architecture(model: str, cases: list[Case], slot: bool) -> Outcome:
        assert not any(case.steps for case in cases)
        return replace(PLAIN, **(idle if slot else plain))

    monkeypatch.setattr(check_architectures, "CASES", CASES)
    monkeypatch.setattr(check_architectures, "run_architecture", run_architecture)
    got = replace(OUTCOME, **outcome)
    row = check_architectures.compare("qwen2", got, CASES, TRANSFORMERS)
    assert not row.good
    row = check_architectures.blame(row, "model", got, TRANSFORMERS)
    assert row.result == result
    assert row.good == result.startswith("exact")


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
    allowed = ("exact", "refused: ")
    assert all(result.startswith(allowed) for result in results)
    assert results.count("exact") >= 15
