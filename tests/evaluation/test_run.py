"""Runs on one engine: files, seeds, tasks end to end, resuming."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.generation import VllmEngine
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from tests.conftest import ROOT
from tests.evaluation.conftest import PROBLEMS, RunMain, WriteConfig
from tests.evaluation.test_tasks import QUESTIONS


def _results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


def _samples(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def test_files_of_a_run(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run_main("--config", write_config(), "--output-dir", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "config.yaml",
        "inspection.json",
        "report.html",
        "results.json",
        "run.log",
        "samples.jsonl",
    }
    assert "8 problems answered" in (out / "run.log").read_text()
    table, said = capsys.readouterr()
    assert said.startswith(f"log: {out / 'run.log'}\n")
    assert "\nreading the problems: " in said
    assert "baseline" in table
    assert "slot" in table

    results = _results(out)
    assert [(entry["name"], entry["task"]) for entry in results["arms"]] == [
        ("baseline", "aime24"),
        ("slot", "aime24"),
    ]
    baseline, slot = results["arms"]
    assert (baseline["metric"], baseline["samples"]) == ("pass@k:k=1", 8)
    assert (slot["steps"], slot["lr"]) == (3, 0.1)
    assert 8 <= baseline["generated_tokens"] <= 64
    assert baseline["first_loss"] is None
    assert slot["last_loss"] < slot["first_loss"]
    assert results["config"]["model"] and results["versions"]["lighteval"]

    samples = _samples(out)
    assert len(samples) == 16
    by_arm = {arm: {s["id"]: s for s in samples if s["arm"] == arm} for arm in ("baseline", "slot")}
    for problem, one in by_arm["baseline"].items():
        other = by_arm["slot"][problem]
        for key in ("seed", "prompt", "gold", "prompt_tokens", "task"):
            assert one[key] == other[key]
        assert (one["first_loss"], one["last_loss"]) == (None, None)
        assert other["last_loss"] < other["first_loss"]
        assert one["finish_reason"] in ("stop", "length")
    assert len({sample["seed"] for sample in samples}) == 8


def test_arms_are_asked_problem_by_problem(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate, asked = VllmEngine.generate, []

    def seen(self: Any, requests: Any, on_tokens: Any, with_shifts: bool = False) -> Any:
        if not with_shifts:
            names = [request.id.replace("|0", "").split("/")[:3] for request in requests]
            asked.append([*map(tuple, names)])
        yield from generate(self, requests, on_tokens, with_shifts)

    monkeypatch.setattr(VllmEngine, "generate", seen)
    tasks = [
        {"name": "aime24", "data": str(PROBLEMS)},
        {"name": "aime25", "data": str(PROBLEMS), "max_samples": 2},
    ]
    out = tmp_path / "out"
    assert run_main("--config", write_config(tasks=tasks), "--output-dir", out) == 0
    [whole] = asked
    baseline, slot = whole[::2], whole[1::2]
    assert [task for _, task, _ in baseline] == ["aime24"] * 8 + ["aime25"] * 2
    assert len(set(baseline)) == 10
    assert slot == [("slot", *problem) for _, *problem in baseline]
    # As after an interruption: the rest, in the same order.
    (out / "results.json").unlink()
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    kept = [json.loads(line) for line in lines[:7]]
    (out / "samples.jsonl").write_text("".join(lines[:7]))
    assert run_main("--config", write_config(tasks=tasks), "--output-dir", out, "--resume") == 0
    done = {(line["arm"], line["task"], line["id"]) for line in kept}
    assert asked[1] == [request for request in whole if request not in done]


def test_real_items_of_all_four_tasks(
    write_config: WriteConfig, run_main: RunMain, tmp_path: Path, benchmarks: Path
) -> None:
    for name in ("math500", "gsm8k_test"):
        lines = (benchmarks / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:50]))
    with (tmp_path / "gpqa.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, QUESTIONS[0])
        writer.writeheader()
        writer.writerows(QUESTIONS)
    config = write_config(
        tasks=[
            {"name": "aime24", "data": str(benchmarks / "aime24.jsonl")},
            {"name": "math_500", "data": str(tmp_path / "math500.jsonl")},
            {"name": "gsm8k", "data": str(tmp_path / "gsm8k_test.jsonl")},
            {"name": "gpqa:diamond", "data": str(tmp_path)},
        ]
    )
    (tmp_path / "gpqa").mkdir()
    (tmp_path / "gpqa.csv").rename(tmp_path / "gpqa" / "gpqa_diamond.csv")
    settings = ["--set", f"tasks.gpqa:diamond.data={tmp_path / 'gpqa'}"]
    assert run_main("--config", config, "--output-dir", tmp_path / "out", *settings) == 0
    rows = [
        (e["name"], e["task"], e["metric"], e["samples"])
        for e in _results(tmp_path / "out")["arms"]
    ]
    expected = [
        ("aime24", "pass@k:k=1", 30),
        ("math_500", "pass@k:k=1&n=1", 50),
        ("gsm8k", "extractive_match", 50),
        ("gpqa:diamond", "gpqa_pass@k:k=1", 12),
    ]
    assert rows == [(arm, *task) for arm in ("baseline", "slot") for task in expected]


def test_a_right_answer_scores(
    write_config: WriteConfig, run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is scored is the text that the engine gives; here it gives the gold.
    generate = VllmEngine.generate
    golds = [json.loads(line)["answer"] for line in PROBLEMS.read_text().splitlines()]

    def solved(*arguments: Any, **more: Any) -> Any:
        for completion in generate(*arguments, **more):
            problem = completion.request.id.split("/")[2]
            if problem in ("0", "1"):
                completion.texts[0] = f"<think>$5$</think> $\\boxed{{{golds[int(problem)]}}}$"
            yield completion

    monkeypatch.setattr(VllmEngine, "generate", solved)
    assert run_main("--config", write_config(), "--output-dir", tmp_path / "out") == 0
    entry = _results(tmp_path / "out")["arms"][0]
    assert entry["value"] == 0.25
    groups = entry["breakdown"]["finish_reason"].values()
    assert sum(group["samples"] for group in groups) == 8
    assert sum(group["value"] * group["samples"] for group in groups) == pytest.approx(2)
    scores = {s["id"]: s["score"] for s in _samples(tmp_path / "out") if s["arm"] == "slot"}
    assert {problem for problem, score in scores.items() if score} == {"0", "1"}


def test_several_answers_per_problem(
    write_config: WriteConfig, run_main: RunMain, tmp_path: Path
) -> None:
    config = write_config(
        tasks=[{"name": "aime24_gpassk", "data": str(PROBLEMS), "max_samples": 1}],
        generation={"temperature": 1.0, "max_new_tokens": 2},
    )
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 0
    entry = _results(tmp_path / "out")["arms"][1]
    assert (entry["samples"], entry["generated_tokens"]) == (1, 96)
    samples = [sample for sample in _samples(tmp_path / "out") if sample["arm"] == "slot"]
    assert [sample["sample"] for sample in samples] == list(range(48))
    assert len({sample["seed"] for sample in samples}) == 48
    assert len({sample["completion"] for sample in samples}) > 1
    assert all(sample["last_loss"] < sample["first_loss"] for sample in samples)


def test_a_prompt_that_does_not_fit(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(system_prompt="long " * 1000)
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 2
    assert "engine.max_model_len=2048: the prompt of aime24|0, problem" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_directory_is_not_lost(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = write_config(), tmp_path / "out"
    run = ["--config", config, "--output-dir", out, "--set", "arms=[{name: baseline, steps: 0}]"]
    assert run_main(*run) == 0
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "results.json" in kept
    capsys.readouterr()
    # The same command typed again, and another run.
    for more in ([], ["generation.seed=1"]):
        assert run_main(*run, *more) == 2
        said = capsys.readouterr().err
        assert "holds a finished run" in said and "--overwrite replaces it" in said
    assert run_main(*run, "generation.seed=1", "--resume") == 2
    assert "(generation.seed=1, there 0); --resume needs the same one" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    log = kept.pop("run.log")
    # Until what replaces it is done, however often that is begun.
    generate = VllmEngine.generate

    def interrupted(*arguments: Any) -> Any:
        first, *_ = generate(*arguments)  # all, or the shared engine would go on with them
        yield first
        raise RunFailed("the power was cut")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(VllmEngine, "generate", interrupted)
            assert run_main(*run, "generation.seed=1", "--overwrite") == 1
        assert not (out / "results.json").exists()
        replaced = out / ".replaced"
        assert {path.name: path.read_bytes() for path in replaced.iterdir()} == kept
    assert run_main(*run, "generation.seed=1", "--resume") == 0
    assert not (out / ".replaced").exists()
    assert run_main(*run, "generation.seed=2", "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {*kept, "run.log"}
    # The log has all of it.
    assert (out / "run.log").read_bytes().startswith(log)
    assert run_main(*run, "generation.seed=1", "--overwrite") == 0
    # An unfinished run is continued or replaced on demand only.
    (out / "results.json").unlink()
    assert run_main(*run, "generation.seed=1") == 2
    assert "unfinished run; --resume continues it" in capsys.readouterr().err
    # The same data elsewhere, and fewer of them: no answer is lost.
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(PROBLEMS.read_bytes())
    data = f"tasks.0.data={elsewhere}"
    assert run_main(*run, "generation.seed=1", data, "--resume") == 0
    elsewhere.write_text(PROBLEMS.read_text().splitlines()[0] + "\n")
    kept_samples = (out / "samples.jsonl").read_bytes()
    assert run_main(*run, "generation.seed=1", data, "--resume") == 2
    said = capsys.readouterr().err
    assert "is not among today's; --resume, rescore and export need the same data" in said
    assert (out / "samples.jsonl").read_bytes() == kept_samples
    # Other data under the same configuration is not mixed in.
    moved = (out / "samples.jsonl").read_text().replace("letters", "signs")
    (out / "samples.jsonl").write_text(moved)
    assert run_main(*run, "generation.seed=1", "--resume") == 2
    assert "needs the same data, model and settings" in capsys.readouterr().err


def _without_times(results: dict[str, Any]) -> dict[str, Any]:
    assert results.pop("seconds") > 0
    return results


# Ctrl-C, which goes to the whole group, after 17 answers: from outside it could come too late.
INTERRUPTED = """
import os, signal, sys
from slot_vllm.evaluation.__main__ import leave, main
from slot_vllm.evaluation.samples import SampleFile

append = SampleFile.append

def interrupted(self, samples):
    append(self, samples)
    if self.path.read_text().count("\\n") >= 17:
        SampleFile.append = append
        os.killpg(0, signal.SIGINT)

SampleFile.append = interrupted
leave(main(sys.argv[1:]))
"""


def test_interrupted_and_resumed(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problems = [
        {"question": f"What is {a} plus {a}?", "answer": f"{a} + {a} = {2 * a}\n#### {2 * a}"}
        for a in range(24)
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    config = write_config(
        generation={"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 16},
        tasks=[{"name": "gsm8k", "data": str(data)}],
    )
    out = tmp_path / "interrupted"
    run = ["--config", str(config), "--output-dir", str(out)]
    # As in a terminal: the engine has a process of its own.
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *run],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        start_new_session=True,
    )
    samples = out / "samples.jsonl"
    try:
        said = process.communicate(timeout=600)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert "of 48 answers are in" in said or "answers that are in are kept" in said
    assert "Traceback" not in said
    assert not (out / "results.json").exists()
    kept = _samples(out)
    assert 17 <= len(kept) < 48

    # As if the interruption had hit in the middle of a line.
    with samples.open("a") as file:
        file.write(samples.read_text().splitlines()[0][:100])
    assert run_main(*run, "--resume") == 0
    assert _samples(out)[: len(kept)] == kept
    assert len(_samples(out)) == 48

    assert run_main("--config", config, "--output-dir", tmp_path / "whole") == 0
    resumed = _without_times(_results(out))
    assert resumed == _without_times(_results(tmp_path / "whole"))

    # Nothing is left to be done: no engine, the same results.
    def no_engine(_options: Any) -> Any:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", no_engine)
    assert run_main(*run, "--resume") == 0
    assert _without_times(_results(out)) == resumed


def test_resume_never_mixes_settings(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, out = write_config(), tmp_path / "out"
    assert run_main("--config", config, "--output-dir", out) == 0
    capsys.readouterr()
    assert run_main("--config", config, "--output-dir", out, "--resume", "--overwrite") == 2
    assert "not allowed with argument" in capsys.readouterr().err
    (out / "config.yaml").write_text("")
    assert run_main("--config", config, "--output-dir", out, "--resume") == 2
    assert "config.yaml cannot be read" in capsys.readouterr().err
    (out / "config.yaml").unlink()
    for mode in ([], ["--resume"]):
        assert run_main("--config", config, "--output-dir", out, *mode) == 2
        assert "no config.yaml that says which run it is of" in capsys.readouterr().err
    assert (out / "samples.jsonl").exists()


def test_what_vllm_refuses_leaves_nothing_behind(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    config = write_config()
    empty = "generation.stop=['']"
    assert run_main("--config", config, "--output-dir", out, "--set", empty) == 2
    assert "generation.stop.0=''" in capsys.readouterr().err
    # Whatever only SamplingParams itself refuses.
    request = SlotModel._request

    def without_tokens(*args: Any) -> Any:
        made = request(*args)
        made.sampling["max_tokens"] = 0
        return made

    monkeypatch.setattr(SlotModel, "_request", without_tokens)
    assert run_main("--config", config, "--output-dir", out) == 2
    assert "generation: vLLM refuses: max_tokens must be at least 1" in capsys.readouterr().err
    assert not out.exists()


# torch and vLLM ask these which kernels to use; oneDNN and ATen have variables for it.
WITHOUT_AVX512 = """
import torch.cpu
for name in ("_is_avx512_supported", "_is_avx512_bf16_supported"):
    setattr(torch.cpu, name, lambda: False)
"""


@pytest.mark.full
@pytest.mark.parametrize("processor", ["this", "without AVX-512"])
def test_the_quickstart_as_a_user_types_it(processor: str, tmp_path: Path) -> None:
    stamp = Path(sys.prefix) / ".slot-vllm"
    if not stamp.exists() or not stamp.read_text().endswith(f" {ROOT}"):
        pytest.skip("scripts/setup.sh did not make this environment for here, and would install")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
    if processor != "this":
        (tmp_path / "sitecustomize.py").write_text(WITHOUT_AVX512)
        environment |= {
            "PYTHONPATH": str(tmp_path),
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
        }
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", "run_vllm.sh", "--config", "configs/quickstart.yaml", "--output-dir", str(out)],
        cwd=ROOT,
        env={**environment, "SLOT_VENV": sys.prefix},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = _results(out)
    assert results["config"]["model"] == "get:smollm2-135m"
    arms = results["arms"]
    assert [arm["name"] for arm in arms] == ["baseline", "paper", "steps1"]
    assert [arm["samples"] for arm in arms] == [150] * 3
    assert all(arm["last_loss"] < arm["first_loss"] for arm in arms if arm["steps"])
    committed = ROOT / "logs/reference/quickstart"
    reference = _results(committed)
    for ours, theirs in zip(arms, reference["arms"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=0.03)
    if results["machine"] == reference["machine"]:
        texts = [
            {(s.arm, s.id): s.completion for s in SampleFile(run / SAMPLES).read()}
            for run in (out, committed)
        ]
        assert texts[0] == texts[1]
    assert "repeated_word" in done.stdout
    assert (out / "report.html").exists()
