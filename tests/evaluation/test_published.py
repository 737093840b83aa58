"""A run beside the published runs: figures by hand, what stands alone, bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slot_vllm.evaluation.published import Comparison, compare, show

from slot_vllm import cli
from slot_vllm.evaluation import published_table
from slot_vllm.evaluation.config import ConfigError
from slot_vllm.evaluation.published_table import PROBLEMS, TABLE, PublishedRun

MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
Write = Callable[..., Path]


def entry(**values: Any) -> dict[str, Any]:
    """Of results.json: without SLOT, 18 of AIME's 30 problems solved."""
    entry = {
        "name": "baseline",
        "task": "aime24",
        "metric": "pass@k:k=1",
        "value": 0.6,
        "stderr": 0.090972,  # sqrt(0.6 0.4 / 29)
        "interval": [0.4232, 0.7541],
        "samples": 30,
        "steps": 0,
        "lr": 0.1,
    }
    return {**entry, **values}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(*entries, model=...): the path of a results.json."""

    def write(*entries: dict[str, Any], model: str = MODEL) -> Path:
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"arms": entries, "config": {"model": model}, "versions": {}}))
        return path

    return write


def test_the_table_of_the_repository() -> None:
    runs = published_table.read()
    assert len(runs) == 74
    assert len({(run.task, run.model) for run in runs}) == 36
    assert sum(run.steps == 0 for run in runs) == 36
    for run in runs:
        solved = run.accuracy * run.problems
        assert solved == pytest.approx(
            round(solved), abs=0.02
        )  # so the numbers of problems are right


# The first stands in that run's published log.
@pytest.mark.parametrize(
    ("task", "accuracy", "stderr"),
    [
        ("aime24", 0.1333, 0.0631),  # sqrt(0.1333 0.8667 / 29)
        ("math_500", 0.5, 0.02238),  # sqrt(0.25 / 499)
        ("gpqa:diamond", 0.298, 0.03259),  # sqrt(0.298 0.702 / 197)
        ("aime24", 0.0, 0.02896),  # Wilson: 0 to 1.96² / (30 + 1.96²) = 0.11352; / 2 / 1.96
        ("aime24", 1.0, 0.02896),
    ],
)
def test_the_published_standard_error(task: str, accuracy: float, stderr: float) -> None:
    run = PublishedRun(task, "Qwen2.5-14B", 0, 0.1, accuracy)
    assert run.stderr == pytest.approx(stderr, abs=5e-5)


def test_figures(write: Write) -> None:
    slot = entry(name="slot", steps=1, value=0.2, stderr=0.074278)  # sqrt(0.2 0.8 / 29)
    compared = compare(write(entry(), slot))
    assert compared.alone == []
    baseline, with_slot = compared.lines
    assert baseline.published == PublishedRun("aime24", MODEL.split("/")[1], 0, 0.1, 0.5)
    assert baseline.difference == pytest.approx(0.1)
    assert baseline.stderr == pytest.approx(0.129987, abs=1e-6)  # sqrt((0.25 + 0.24) / 29)
    assert baseline.words == "within chance (z = +0.77)"
    assert with_slot.published.accuracy == 0.5667
    assert with_slot.difference == pytest.approx(-0.3667)
    # sqrt((0.5667 0.4333 + 0.16) / 29)
    assert with_slot.stderr == pytest.approx(0.118256, abs=1e-6)
    assert with_slot.words == "lower than chance allows (z = -3.10)"


def test_both_sides_of_the_limit(write: Write) -> None:
    # Published 0.5 ± 0.092848; with ours ± 0.05 the difference's error is 0.105454.
    for value, words in [
        (0.5 + 1.95 * 0.105454, "within chance (z = +1.95)"),
        (0.5 + 1.97 * 0.105454, "higher than chance allows (z = +1.97)"),
        (0.5 - 1.97 * 0.105454, "lower than chance allows (z = -1.97)"),
    ]:
        (line,) = compare(write(entry(value=value, stderr=0.05))).lines
        assert line.words == words


@pytest.mark.parametrize("stderr", [0.0, None])
def test_without_lighteval_s_error_the_interval_gives_it(
    write: Write, stderr: float | None
) -> None:
    (line,) = compare(write(entry(value=0.0, stderr=stderr, interval=[0, 0.1135]))).lines
    assert line.error == pytest.approx(0.1135 / 3.92)


def test_a_part_of_the_problems_is_said(write: Write) -> None:
    (line,) = compare(write(entry(samples=8))).lines
    assert line.words.endswith("; ours: 8 problems of 30")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (MODEL, "DeepSeek-R1-Distill-Qwen-7B"),
        ("/models/deepseek-r1-distill-qwen-7b/", "DeepSeek-R1-Distill-Qwen-7B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Meta-Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-Math-7B", "Qwen2.5-Math-7B"),
    ],
)
def test_the_model_s_name(write: Write, model: str, found: str) -> None:
    (line,) = compare(write(entry(), model=model)).lines
    assert line.published.model == found


def test_several_published_runs_of_one_setting(write: Write) -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    lines = compare(write(entry(task="gpqa:diamond", samples=198), model=model)).lines
    assert [line.published.accuracy for line in lines] == [0.2929, 0.298]


def test_slot_needs_the_same_setting_and_the_baseline_no_learning_rate(write: Write) -> None:
    model = "Qwen/Qwen2.5-Math-7B"
    arms = [entry(task="gpqa:diamond", name=f"slot-{lr}", steps=3, lr=lr) for lr in (1.0, 0.1, 0.5)]
    baseline = entry(task="gpqa:diamond", lr=0.7)
    other_steps = entry(task="gpqa:diamond", name="more", steps=5, lr=0.1)
    compared = compare(write(baseline, *arms, other_steps, model=model))
    assert [line.published.accuracy for line in compared.lines] == [0.2576, 0.2626, 0.3283]
    there = "no published run; there are: steps 0; steps 3, lr 0.1; steps 3, lr 1"
    assert compared.alone == [
        f"gpqa:diamond, slot-0.5 (steps 3, lr 0.5): {there}",
        f"gpqa:diamond, more (steps 5, lr 0.1): {there}",
    ]


def test_what_stands_alone(write: Write) -> None:
    without = compare(write(entry(), model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"))
    assert without == Comparison(
        [], ["aime24, baseline (steps 0): no published run; there are: steps 3, lr 1"]
    )
    arms = [
        entry(task="gsm8k"),
        entry(value=None, stderr=None, interval=None),
        entry(name="bare", stderr=None, interval=None),
    ]
    assert compare(write(*arms)).alone == [
        "gsm8k, baseline (steps 0): no published run; there are: none of this task",
        "aime24, baseline (steps 0): ours has no value",
        "aime24, bare (steps 0): ours has no interval",
    ]


def test_what_is_printed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    show(compare(write(entry(), entry(name="slot", steps=5))))
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if "0.5000" in line)
    assert " ".join(row) == (
        "aime24 DeepSeek-R1-Distill-Qwen-7B 0 - 0.5000 ± 0.0928 0.6000 ± 0.0910 +0.1000 ± 0.1300 "
        "within chance (z = +0.77)"
    )
    assert "aime24, slot (steps 5, lr 0.1): no published run" in printed
    assert "Both sides answer the same problems" in printed
    assert "A published value is one run." in printed


def test_an_unknown_model_names_the_known(write: Write) -> None:
    with pytest.raises(ConfigError) as error:
        compare(write(entry(), model="Qwen/Qwen2.5-7B"))
    assert "config.model='Qwen/Qwen2.5-7B': no published run" in str(error.value)
    assert "Qwen2.5-14B, Qwen2.5-32B, Qwen2.5-Math-1.5B" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "results.json: no such file"),
        ("{", "not the results of a run"),
        ("[]", "all: Input should be a valid dictionary"),
        ('{"config": {"model": "x"}}', "arms: Field required"),
        ('{"arms": [], "config": {}}', "config.model: Field required"),
        ('{"arms": [{"name": 1}], "config": {"model": "x"}}', "arms.0.name"),
        (
            json.dumps({"arms": [entry(value=float("nan"))], "config": {"model": MODEL}}),
            "arms.0.value: Input should be a finite number",
        ),
    ],
)
def test_bad_results(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["compare-published", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file; --published FILE names the table"),
        ("task,model,steps,lr,accuracy\n", "no rows"),
        ("task,model\naime24,x\n", ":2: a row needs task, model, steps, lr, accuracy"),
        ("task,model,steps,lr,accuracy\naime25,x,0,1,0.5\n", ":2: task='aime25'; allowed: aime24"),
        ("task,model,steps,lr,accuracy\naime24,x,0,1,good\n", "'good'"),
        ("task,model,steps,lr,accuracy\naime24,x,0,1,56.7\n", "accuracy=56.7; allowed: from 0 to"),
    ],
)
def test_bad_table(
    text: str | None,
    said: str,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "table.csv"
    if text is not None:
        table.write_text(text)
    arguments = ["compare-published", str(write(entry())), "--published", str(table)]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {table}:")
    assert said in line


def test_another_table(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text(TABLE.read_text().replace("Qwen-7B,0,0.1,0.5\n", "Qwen-7B,0,0.1,0.9\n"))
    assert cli.main(["compare-published", str(write(entry())), "--published", str(table)]) == 0
    assert "0.9000 ± 0.0557" in capsys.readouterr().out  # sqrt(0.09 / 29)


def test_the_tasks_have_a_number_of_problems() -> None:
    assert PROBLEMS == {"aime24": 30, "math_500": 500, "gpqa:diamond": 198}
