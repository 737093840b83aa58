"""The command that measures; no test looks at a time."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_samples_share_the_prompt_and_its_delta(tiny_model: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / "prefix.json"
    options = ["--samples", "4", "--tokens", "80", "--new-tokens", "2", "--kv-cache-mb", "16"]
    options += ["--rounds", "2", "--json", "--output", str(output)]
    result = subprocess.run(
        [sys.executable, "-m", "slot_vllm.bench", "prefix", "--model", tiny_model, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    measured = json.loads(result.stdout)
    assert json.loads(output.read_text()) == measured
    counters = {name: entry["counters"] for name, entry in measured["variants"].items()}
    assert counters["cache"] == {
        "optimized": 2,
        "shared": 6,
        "hidden_rows_cached": 2 * 3 * 64,
        "hidden_rows_computed": 2 * (80 + 3 * 16),
        "failed": 0,
    }
    assert counters["bypass"]["optimized"] == 8
    assert counters["bypass"]["hidden_rows_cached"] == 0
    assert len(measured["variants"]["bypass"]["seconds"]) == 2
    assert measured["speedup"] > 0
