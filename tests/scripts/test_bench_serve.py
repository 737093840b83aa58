"""What SLOT costs a server: the figures are those of the rounds, and the rounds those of the
server."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, starts
from tests.engine.vllm_command import vllm_command

sys.path.insert(0, str(ROOT / "scripts"))
import bench_serve

REQUESTS, NEW_TOKENS, ROUNDS = 3, 4, 2
ARMS = ("baseline", "steps2")


def ask(command: Sequence[str], **_: Any) -> None:
    """``vllm bench serve`` in this process: importing vLLM takes longer than the test."""
    import vllm.entrypoints.llm  # noqa: F401 (first, or vLLM's imports go in a circle)
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = list(command)
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args(words[words.index("serve") + 1 :]))


@pytest.fixture(scope="module")
@starts
def result(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    run, found = folder / "run.yaml", folder / "found.json"
    settings = {
        "name": "bench",
        "model": tiny_model,
        "engine": {
            "dtype": "float32",
            "max_model_len": 512,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 2**26,
            "enable_prefix_caching": True,
        },
        "slot": {"workspace_mb": 16},
        "tasks": [{"name": "aime24", "data": str(ROOT / "tests/evaluation/problems.jsonl")}],
        "arms": [{"name": ARMS[0], "steps": 0}, {"name": ARMS[1], "steps": 2}],
    }
    run.write_text(yaml.safe_dump(settings))
    options = f"--requests {REQUESTS} --new-tokens {NEW_TOKENS} --rounds {ROUNDS} --at-once 2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        patch.chdir(ROOT)
        patch.setattr(bench_serve, "_VLLM", vllm_command(forked=True))
        # Others in this process start theirs.
        patch.setattr(
            bench_serve, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": ask})
        )
        patch.setattr(
            sys, "argv", ["bench_serve.py", str(run), "--output", str(found), *options.split()]
        )
        bench_serve.main()
    written: dict[str, Any] = json.loads(found.read_text())
    return written


def test_the_arms_take_turns(result: dict[str, Any]) -> None:
    turns = [(one["round"], one["arm"]) for one in result["rounds"]]
    assert turns == [(0, ARMS[0]), (0, ARMS[1]), (1, ARMS[1]), (1, ARMS[0])]


def test_a_round_is_what_was_asked(result: dict[str, Any]) -> None:
    for one in result["rounds"]:
        assert one["completed"] == REQUESTS
        assert one["total_output_tokens"] == REQUESTS * NEW_TOKENS
        assert one["request_throughput"] == pytest.approx(REQUESTS / one["duration"])
        assert 0 < one["mean_ttft_ms"] <= one["p99_ttft_ms"] <= 1000 * one["duration"]
        # Each round learns its own deltas, and without SLOT nothing is learned.
        assert (one["learning_seconds"] > 0) == (one["arm"] != "baseline")
        assert one["learning_seconds"] < one["duration"]


def test_an_arms_figures_are_those_of_its_rounds(result: dict[str, Any]) -> None:
    by_arm = {arm: [one for one in result["rounds"] if one["arm"] == arm] for arm in ARMS}
    for arm, summary in result["arms"].items():
        for key in summary.keys() - {"loss"}:
            middle = statistics.median(one[key] for one in by_arm[arm])
            assert summary[key] == pytest.approx(middle, abs=1e-4)
    pairs = zip(*(by_arm[arm] for arm in ARMS), strict=True)
    losses = [1 - slot["request_throughput"] / plain["request_throughput"] for plain, slot in pairs]
    assert result["arms"]["steps2"]["loss"] == pytest.approx(sum(losses) / ROUNDS, abs=1e-4)
    assert result["arms"]["baseline"]["loss"] == 0


def test_the_loss_is_of_the_same_round() -> None:
    times = dict.fromkeys((*bench_serve._MEASURED, "learning_seconds"), 1.0)
    rounds = [
        {**times, "arm": arm, "request_throughput": value}
        for arm, value in [("baseline", 4.0), ("slot", 3.0), ("baseline", 2.0), ("slot", 1.0)]
    ]
    rounds += [
        {**times, "arm": "baseline", "request_throughput": 10.0},
        {**times, "arm": "slot", "request_throughput": 9.0},
    ]
    # 1/4, 1/2, 1/10.
    found = bench_serve._summary("slot", rounds)
    assert (found["loss"], found["request_throughput"]) == (0.25, 3.0)


@pytest.mark.parametrize("made", [{"completed": 2}, {"total_output_tokens": 11}])
def test_an_answer_that_is_missing_or_short_stops_it(
    made: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(command: Sequence[str], **_: Any) -> None:
        folder = next(word for word in command if word.startswith("--result-dir="))
        values = {"completed": 3, "total_output_tokens": 12, **made}
        (Path(folder.partition("=")[2]) / "result.json").write_text(json.dumps(values))

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(bench_serve, "FRESH_SECONDS", 0)
    monkeypatch.setattr(bench_serve.urllib.request, "urlopen", lambda _: None)
    monkeypatch.setattr(bench_serve, "_learning_seconds", lambda url: 0.0)
    options = argparse.Namespace(requests=3, new_tokens=4, at_once=2)
    arm = bench_serve.Arm(name="slot", steps=2)
    with pytest.raises(SystemExit, match="slot: 3 requests and other numbers of tokens"):
        bench_serve._measure("http://nowhere", arm, tmp_path, options)
