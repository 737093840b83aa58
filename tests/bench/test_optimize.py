"""The command that measures; no test looks at a time."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slot_vllm.bench.__main__ import main
from slot_vllm.bench.optimize import measure
from slot_vllm.bench.peak_memory import peak_extra_bytes
from slot_vllm.bench.published import published_delta
from slot_vllm.bench.shape import Shape, make_problem
from slot_vllm.bench.table import table
from slot_vllm.bench.variants import OPTIONS, OURS, PLAIN_FORM
from slot_vllm.optim.head import Head
from slot_vllm.optim.oracle import oracle

ROOT = Path(__file__).parents[2]
TINY = ["--hidden", "64", "--vocab", "500", "--tokens", "12", "--workspace-mb", "2"]


def shape(**changes: int | str) -> Shape:
    values = {
        "hidden": 64,
        "vocabulary": 500,
        "tokens": 12,
        "requests": 2,
        "steps": 3,
        "dtype": "bfloat16",
        "device": "cpu",
        "workspace_mb": 2,
    }
    return Shape(**{**values, **changes})  # type: ignore[arg-type]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slot_vllm.bench", "optimize", *TINY, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks, each of a process that imports torch, are another test's matter."""
    monkeypatch.setattr("slot_vllm.bench.optimize.peak_extra_bytes", lambda *_: 3 << 20)


def test_json_alone_is_printed_and_written(tmp_path: Path) -> None:
    written = tmp_path / "new" / "result.json"
    done = run("--json", "--requests", "3", "--device", "cpu", "--output", str(written))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(written.read_text())
    assert result["shape"]["tokens"] == 12 and result["shape"]["requests"] == 3
    assert result["machine"]["cores"] >= 1
    assert result["kernels"] in ("compiled", "torch")
    for name in ("published", "ours"):
        entry = result["variants"][name]
        assert entry["seconds"] > 0 and entry["cpu_seconds"] > 0 and entry["peak_extra_bytes"] >= 0
        assert math.isfinite(entry["largest_difference"])
    ours, theirs = result["variants"]["ours"], result["variants"]["published"]
    bare = result["bare"]
    assert bare["seconds"] == min(bare["mm"], bare["linear"])
    assert result["speedup"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert result["gemm_multiple"] == pytest.approx(ours["seconds"] / bare["seconds"])
    assert result["floor_seconds"] == pytest.approx(sum(result["floor_parts"].values()))
    assert result["floor_multiple"] == pytest.approx(ours["seconds"] / result["floor_seconds"])


def test_a_table_is_printed_otherwise(
    no_processes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["optimize", *TINY, "--device", "cpu", "--oracle", "off"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "published",
        "ours",
        "bare",
        "floor",
        "ours",
    ]
    assert lines[2].split()[5] == "3"


@pytest.mark.parametrize("bad", [["--tokens", "0"], ["--dtype", "int8"], ["--steps", "x"]])
def test_a_bad_flag_is_an_error(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["optimize", *TINY, *bad])
    said = capsys.readouterr()
    assert error.value.code == 2 and bad[0] in said.err and not said.out


def test_without_the_oracle_no_difference_is_claimed(no_processes: None) -> None:
    result = measure(shape(requests=1), rounds=1, oracle="off")
    assert result["variants"]["ours"]["largest_difference"] is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_published_loop_is_the_oracle_in_the_models_dtype(dtype: str) -> None:
    head, prompts = make_problem(shape(dtype=dtype, steps=5, tokens=40))
    for prompt in prompts:
        found = published_delta(head, prompt)
        assert found.dtype == head.weight.dtype and found.any()
        wide = dataclasses.replace(prompt, hidden=prompt.hidden.double())
        exact = published_delta(Head(head.weight.double()), wide)
        expected = oracle(head, prompt).delta
        torch.testing.assert_close(exact, expected, rtol=1e-9, atol=1e-12)
        close = {"float32": 1e-4, "bfloat16": 0.2}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=close)


def test_problems_are_equal_and_prompts_differ() -> None:
    head, prompts = make_problem(shape())
    again, same = make_problem(shape())
    assert torch.equal(head.weight, again.weight)
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(prompts, same, strict=True))
    assert not torch.equal(prompts[0].tokens, prompts[1].tokens)


@pytest.mark.parametrize("tokens", [8192, pytest.param(32768, marks=pytest.mark.full)])
def test_a_long_prompt_and_a_large_vocabulary_stay_within_the_workspace(tokens: int) -> None:
    """Of 8k tokens over 152k Z0 is 2.5 GB. d is small, so that it does not take minutes."""
    long = shape(hidden=32, vocabulary=151936, tokens=tokens, requests=1, steps=1, workspace_mb=512)
    assert 512 << 20 <= peak_extra_bytes(long, OURS) <= (512 + 64) << 20


def test_both_forms_learn_the_same(no_processes: None) -> None:
    result = measure(shape(dtype="float32"), rounds=1, oracle="on", plain_form=True)
    both = [result["variants"][name]["largest_difference"] for name in (OURS, PLAIN_FORM)]
    assert max(both) < 2e-4


def test_each_option_is_a_multiple_of_the_paper_s_settings(
    no_processes: None, tmp_path: Path
) -> None:
    result = measure(shape(requests=1), rounds=1, oracle="on", options=True)
    variants = result["variants"]
    paper = variants[OURS]["seconds"]
    for name in OPTIONS:
        assert variants[name]["paper_multiple"] == pytest.approx(variants[name]["seconds"] / paper)
        assert variants[name]["largest_difference"] is None
    assert variants[OURS]["paper_multiple"] == 1.0
    written = tmp_path / "options.json"
    written.write_text(json.dumps(result))
    rows = table([written]).splitlines()
    assert [row.split(" | ")[3] for row in rows[-len(OPTIONS) :]] == [f"`{o}`" for o in OPTIONS]
