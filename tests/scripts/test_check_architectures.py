"""A few architectures beyond those of the conformance tests, and what counts as wrong."""

import json
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
    ("runner", "names"),
    [
        ("v1", SHORT),
        pytest.param("v1", tuple(set(ARCHITECTURES) - set(SHORT)), marks=pytest.mark.full),
        pytest.param("v2", tuple(ARCHITECTURES), marks=pytest.mark.full),
    ],
    ids=["short", "all others", "all on V2"],
)
def test_they_are_exact_or_refused(runner: str, names: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, str(ROOT / "scripts/check_architectures.py"), *names]
    done = subprocess.run(
        [*command, "--runner", runner, "--log", str(log)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["architecture"] for row in rows] == sorted(names)
    committed = {row["architecture"]: row for row in committed_rows() if row["runner"] == runner}
    for row in rows:
        # How far from transformers is not the same on all processors.
        if known := committed.get(row["architecture"]):
            assert row["result"].partition(" (")[0] == known["result"].partition(" (")[0]
    if names == SHORT:
        assert "scale 2" in rows[1]["head"] and "bias" in rows[2]["head"]


def committed_rows() -> list[dict[str, Any]]:
    lines = check_architectures.LOG.read_text().splitlines()
    return [json.loads(line) for line in lines]


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
    row = check_architectures.compare("qwen2", "v1", outcome, CASES, EXPECTED)
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
    def run_architecture(model: str, cases: list[Case], slot: bool, runner: str) -> Outcome:
        assert runner == "v1" and not any(case.steps for case in cases)
        return replace(PLAIN, **(idle if slot else plain))

    monkeypatch.setattr(check_architectures, "CASES", CASES)
    without = [replace(case, steps=0) for case in CASES]
    monkeypatch.setattr(check_architectures, "WITHOUT", without)
    monkeypatch.setattr(check_architectures, "run_architecture", run_architecture)
    got = replace(OUTCOME, **outcome)
    row = check_architectures.compare("qwen2", "v1", got, CASES, TRANSFORMERS)
    assert not row.good
    row = check_architectures.blame(row, "model", got, TRANSFORMERS)
    assert row.result == result
    assert row.good == result.startswith("exact")


def test_a_refusal_is_shown() -> None:
    outcome = Outcome("SLOT needs one linear head", "", "", [], [])
    row = check_architectures.compare("mamba", "v2", outcome, CASES, EXPECTED)
    assert row.good
    assert row.result == "refused: SLOT needs one linear head"


@pytest.mark.parametrize(
    ("alone", "result"),
    [
        ("worker\nNotImplementedError: no kernel\nThe process ended", "does not start: "),
        (None, "wrong: ends with SLOT alone: "),
    ],
)
def test_what_does_not_start_without_slot_either_is_not_wrong(
    alone: str | None, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_architecture(model: str, cases: list[Case], slot: bool, runner: str) -> Outcome:
        assert not slot and not any(case.steps for case in cases)
        if alone is not None:
            raise RuntimeError(alone)
        return PLAIN

    monkeypatch.setattr(check_architectures, "run_architecture", run_architecture)
    said = "Traceback\nNotImplementedError: no kernel\nThe process ended with status 1."
    found = check_architectures.failure("model", "v2", said)
    assert found == result + "NotImplementedError: no kernel"
    row = check_architectures.Row("jamba", "v2", "", "", found)
    assert row.good == (alone is not None)


def test_a_row_takes_the_place_of_an_earlier_one_and_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    done = []

    def check(architecture: str, runner: str, directory: Path) -> check_architectures.Row:
        done.append((architecture, runner))
        return check_architectures.Row(architecture, runner, "C", "h", "exact", 0, 0.5)

    monkeypatch.setattr(check_architectures, "ARCHITECTURES", {"qwen2": {}, "llama": {}})
    monkeypatch.setattr(check_architectures, "check", check)
    wrong = check_architectures.Row("qwen2", "v1", "C", "h", "wrong: prompt 0, delta", 0, 2.0)
    check_architectures.write(wrong, log)

    def run(*arguments: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(sys, "argv", ["check", "--log", str(log), *arguments])
        with pytest.raises(SystemExit) as stopped:
            check_architectures.main()
        assert stopped.value.code == 0
        found = done.copy()
        done.clear()
        return found

    assert run("--runner", "v2") == [("qwen2", "v2"), ("llama", "v2")]
    assert run() == [("llama", "v1")]
    assert run("--runner", "v1", "qwen2") == [("qwen2", "v1")]
    assert run() == []
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    keys = [(row["architecture"], row["runner"], row["result"]) for row in rows]
    assert keys == [(name, r, "exact") for name in ("llama", "qwen2") for r in ("v1", "v2")]


def test_the_committed_log_has_nothing_wrong() -> None:
    rows = committed_rows()
    assert {row["architecture"] for row in rows} <= ARCHITECTURES.keys()
    allowed = ("exact", "refused: ", "does not start: ")
    assert all(row["result"].startswith(allowed) for row in rows)
    for runner, least in (("v1", 20), ("v2", 15)):
        results = [row["result"] for row in rows if row["runner"] == runner]
        assert results.count("exact") >= least
