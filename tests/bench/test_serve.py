"""The command on a tiny model; no test looks at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slot_vllm.bench.__main__ import main
from slot_vllm.bench.table import table

ROOT = Path(__file__).parents[2]
ENGINE = ["enforce_eager=true", "kv_cache_memory_bytes=33554432", "block_size=32"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slot_vllm.bench", "serve", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_only_the_json_is_printed_and_says_what_was_changed(
    tiny_model: str, tmp_path: Path
) -> None:
    written = tmp_path / "new" / "result.json"
    shrink = ["--input-tokens", "9", "--output-tokens", "4", "--requests", "3", "--rounds", "2"]
    done = run(
        *("--shape", tiny_model, "--workload", "short", *shrink, "--steps", "2"),
        *("--engine", *ENGINE, "--json", "--output", str(written)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result == json.loads(written.read_text())
    assert tiny_model not in json.dumps(result["engine"])
    assert result["machine"]["cores"] >= 1 and result["model"]["hidden_size"] == 64
    assert result["engine"]["load_format"] == "dummy" and result["engine"]["max_num_seqs"] == 16
    assert [entry["concurrency"] for entry in result["workloads"]] == [1, 16]
    for entry in result["workloads"]:
        assert entry["changed"]["output_tokens"] == {"fixed": 256, "used": 4}
        assert entry["requests"] == 3 and 0 < entry["optimize_share"] < 1
        for arm in ("off", "on"):
            assert len(entry["each_round"][arm]) == 2
            assert all(value > 0 for one in entry["each_round"][arm] for value in one.values())
        first, second = entry["each_round"]["off"], entry["each_round"]["on"]
        ratios = [b["throughput"] / a["throughput"] for a, b in zip(first, second, strict=True)]
        assert entry["ratio"]["throughput"]["median"] == pytest.approx(sum(ratios) / 2)
    lines = table([written]).splitlines()
    assert len(lines) == 4 and all("short (changed)" in line for line in lines[2:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--shape", "qwen"], "known: llama-3-70b, qwen2.5-0.5b, qwen2.5-7b"),
        (["--shape", "qwen2.5-7b", "--workload", "long"], "allowed: reasoning, short"),
        (["--shape", "qwen2.5-7b", "--engine", "eager"], "KEY=VALUE is required"),
        (["--shape", "qwen2.5-7b", "--requests", "0"], "--requests"),
    ],
)
def test_bad_flags_are_errors_before_anything_starts(
    bad: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["serve", *bad])
    said = capsys.readouterr()
    assert error.value.code and message in f"{said.err}{error.value.code}" and not said.out
