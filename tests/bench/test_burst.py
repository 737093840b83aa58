"""The command on a tiny model; no test looks at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slot_vllm.bench.__main__ import main
from slot_vllm.bench.burst import SHAPES
from slot_vllm.bench.burst_loop import Served, burst_figures
from slot_vllm.bench.table import table

ROOT = Path(__file__).parents[2]


def test_every_arm_serves_the_burst(tiny_model: str, tmp_path: Path) -> None:
    written = tmp_path / "burst.json"
    arguments = ["--running", "2", "--burst", "3", "--burst-tokens", "40", "--rounds", "2"]
    arguments += ["--output-tokens", "60", "--kv-cache-mb", "16", "--steps", "2"]
    arguments += ["--engine", "enforce_eager=true", "block_size=32", "--json"]
    command = [sys.executable, "-m", "slot_vllm.bench", "burst", "--shape", tiny_model]
    done = subprocess.run(
        [*command, *arguments, "--output", str(written)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result == json.loads(written.read_text())
    assert list(result["arms"]) == ["plain", "slot", "max_concurrent 2", "max_concurrent 1"]
    for arm in result["arms"].values():
        assert len(arm["each_round"]) == 2
        assert all(value > 0 for one in arm["each_round"] for value in one.values())
    lines = table([written]).splitlines()
    assert len(lines) == 6 and "| 2 | 3 x 40 | max_concurrent 1 |" in lines[-1]


def test_only_what_comes_after_the_burst_counts() -> None:
    running = [
        Served(0.0, [1.0, 2.0, 3.0, 7.0, 8.0, 99.0], 6),
        Served(0.0, [2.0, 4.0, 9.0, 98.0], 4),
    ]
    burst = [Served(3.5, [9.0], 1), Served(3.5, [7.0], 1)]
    found = burst_figures(running, burst, arrived=3.5, window=2)
    assert found["before_p50"] == 1
    # 4 and 1; 2 and 5.
    assert (found["itl_p50"], found["itl_max"]) == (3, 5)
    assert (found["ttft_p50"], found["ttft_max"]) == (4.5, 5.5)


def test_the_shapes_are_those_of_the_models() -> None:
    known = {
        "qwen2.5-0.5b": (896, 151936, 24, True),
        "qwen2.5-7b": (3584, 152064, 28, False),
        "llama-3-70b": (8192, 128256, 80, False),
    }
    for name, expected in known.items():
        model = json.loads((SHAPES / name / "config.json").read_text())
        keys = ("hidden_size", "vocab_size", "num_hidden_layers", "tie_word_embeddings")
        assert tuple(model[key] for key in keys) == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--shape", "qwen"], "known: llama-3-70b, qwen2.5-0.5b, qwen2.5-7b"),
        (["--shape", "qwen2.5-7b", "--engine", "eager"], "KEY=VALUE is required"),
        (["--shape", "qwen2.5-7b", "--rounds", "0"], "--rounds"),
    ],
)
def test_bad_flags_are_errors_before_anything_starts(
    bad: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["burst", *bad])
    said = capsys.readouterr()
    assert error.value.code and message in f"{said.err}{error.value.code}" and not said.out
