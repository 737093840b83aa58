"""A run beside the published runs: figures by hand, what stands alone, bad input."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli
from slot_vllm.evaluation import benchmarks, published_table
from slot_vllm.evaluation.compare_published import BesidePublished, compare, show
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.published_table import PROBLEMS, TABLE, PublishedRun
from slot_vllm.evaluation.record import Arm
from slot_vllm.evaluation.rescore import RESCORED, rescore
from slot_vllm.evaluation.task_definition import prompt_and_scorers
from tests.evaluation.conftest import PROBLEMS as MADE_UP
from tests.evaluation.finished_runs import finish

MODEL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
GENERATION = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768, "seed": 0}
Write = Callable[..., Path]


def entry(**values: Any) -> dict[str, Any]:
    """Of results.json: without SLOT, 18 of AIME's 30 problems solved."""
    entry = {
        "name": "baseline",
        "task": "published:aime24",
        "metric": "pass@k:k=1",
        "value": 0.6,
        "stderr": 0.090972,  # sqrt(0.6 0.4 / 29)
        "interval": [0.4232, 0.7541],
        "samples": 30,
        "steps": 0,
        "lr": 0.1,
    }
    entry |= values
    arm = {"name": "arm", "steps": entry["steps"], "lr": entry["lr"]}
    return {"arm": arm, **entry}


def definition(task: str, answers: int = 1) -> dict[str, Any]:
    """Of results.json: of our benchmark of this name, or of a task of the user's own."""
    ours = {one.name: one for one in benchmarks.TASKS_TABLE}
    prompt, metrics = (
        prompt_and_scorers(ours[task].prompt_function, ours[task].metrics)
        if task in ours
        else ("", {})
    )
    return {"prompt": prompt, "metrics": metrics, "lighteval": "", "answers": answers}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(*entries, model=..., **config): the path of a results.json."""

    def write(
        *entries: dict[str, Any],
        model: str = MODEL,
        answers: int = 1,
        tasks: dict[str, Any] | None = None,
        **config: Any,
    ) -> Path:
        path = tmp_path / "results.json"
        values = {
            "schema": 2,
            "arms": entries,
            "config": {"model": model, "generation": GENERATION, **config},
            "tasks": {entry["task"]: definition(entry["task"], answers) for entry in entries}
            if tasks is None
            else tasks,
        }
        path.write_text(json.dumps(values))
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
    lines = compare(write(entry(task="published:gpqa:diamond", samples=198), model=model)).lines
    assert [line.published.accuracy for line in lines] == [0.2929, 0.298]


def test_slot_needs_the_same_setting_and_the_baseline_no_learning_rate(write: Write) -> None:
    model = "Qwen/Qwen2.5-Math-7B"
    arms = [
        entry(task="published:gpqa:diamond", name=f"slot-{lr}", steps=3, lr=lr)
        for lr in (1.0, 0.1, 0.5)
    ]
    baseline = entry(task="published:gpqa:diamond", lr=0.7)
    other_steps = entry(task="published:gpqa:diamond", name="more", steps=5, lr=0.1)
    compared = compare(write(baseline, *arms, other_steps, model=model))
    assert [line.published.accuracy for line in compared.lines] == [0.2576, 0.2626, 0.3283]
    there = "no published run; there are: steps 0; steps 3, lr 0.1; steps 3, lr 1"
    assert compared.alone == [
        f"published:gpqa:diamond, slot-0.5 (steps 3, lr 0.5): {there}",
        f"published:gpqa:diamond, more (steps 5, lr 0.1): {there}",
    ]


def test_what_stands_alone(write: Write) -> None:
    without = compare(write(entry(), model="deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"))
    assert without == BesidePublished(
        [], ["published:aime24, baseline (steps 0): no published run; there are: steps 3, lr 1"], []
    )
    arms = [
        entry(task="gsm8k"),
        entry(value=None, stderr=None, interval=None),
        entry(name="bare", stderr=None, interval=None),
    ]
    assert compare(write(*arms)).alone == [
        "gsm8k, baseline (steps 0): no published run; there are: none of this task",
        "published:aime24, baseline (steps 0): ours has no value",
        "published:aime24, bare (steps 0): ours has no interval",
    ]


def test_what_is_printed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    show(compare(write(entry(), entry(name="slot", steps=5))))
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if "0.5000" in line)
    assert " ".join(row) == (
        "aime24 DeepSeek-R1-Distill-Qwen-7B 0 - 0.5000 ± 0.0928 0.6000 ± 0.0910 +0.1000 ± 0.1300 "
        "within chance (z = +0.77)"
    )
    assert "published:aime24, slot (steps 5, lr 0.1): no published run" in printed
    assert "Both sides answer the same problems" in printed
    assert "A published value is one run." in printed


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"eps": 1e-6}, "eps 1e-06 (theirs 1e-05)"),
        ({"preset": "paper-vllm", "weight_decay": 0}, "weight_decay 0.0 (theirs 1e-05)"),
        ({"preset": "paper-vllm", "loss_tokens": "user"}, "loss_tokens 'user' (theirs 'all')"),
    ],
)
def test_an_arm_of_other_settings_stands_alone(
    write: Write, changed: dict[str, Any], said: str
) -> None:
    arm = Arm(name="slot", steps=1, lr=0.1, **changed).model_dump(mode="json")
    found = compare(write(entry(name="slot", steps=1, arm=arm)))
    assert found.lines == []
    assert found.alone[0].startswith("published:aime24, slot (steps 1, lr 0.1): not as published: ")
    assert said in found.alone[0]


def test_an_arm_with_a_removed_setting_stands_alone(write: Write) -> None:
    arm = Arm(name="slot", steps=1, lr=0.1).model_dump(mode="json")
    found = compare(write(entry(name="slot", steps=1, arm={**arm, "optimizer": "sgd"})))
    assert found.lines == []
    assert "not as published: optimizer 'sgd' (removed since)" in found.alone[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"rounding": "model"}, "; ours: rounding model"),
        ({"preset": "paper-vllm"}, "; ours: preset paper-vllm"),
        (
            {"preset": "paper-vllm", "rounding": "model"},
            "; ours: preset paper-vllm, rounding model",
        ),
    ],
)
def test_what_a_published_run_may_have_been_stands_beside_it(
    write: Write,
    settings: dict[str, Any],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arm = Arm(name="slot", steps=1, lr=0.1, **settings).model_dump(mode="json")
    found = compare(write(entry(name="slot", steps=1, arm=arm)))
    assert found.alone == []
    assert found.lines[0].words == f"within chance (z = +0.26){words}"
    show(found)
    assert "neither the AdamW constants of a published run are known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"quantization": "fp8"}, "engine.quantization 'fp8' (theirs vLLM's default)"),
        ({"dtype": "float16"}, "engine.dtype 'float16' (theirs 'bfloat16')"),
        ({"hf_overrides": {"x": 1}}, "engine.hf_overrides {'x': 1} (theirs vLLM's default)"),
        ({"load_format": "dummy"}, "engine.load_format 'dummy' (theirs 'hf')"),
        ({"enable_lora": True}, "engine.enable_lora True"),
        ({"hf_config_path": "other"}, "engine.hf_config_path 'other'"),
        ({"revision": "abc"}, "engine.revision 'abc' (theirs 'main')"),
        ({"tokenizer": "other"}, "engine.tokenizer 'other'"),
        ({"kv_cache_dtype": "fp8"}, "engine.kv_cache_dtype 'fp8'"),
        ({"speculative_config": {"method": "ngram"}}, "engine.speculative_config"),
        ({"an_option_of_tomorrow": 1}, "engine.an_option_of_tomorrow 1"),
    ],
)
def test_an_option_that_changes_the_model_is_named(
    write: Write, engine: dict[str, Any], said: str
) -> None:
    found = compare(write(entry(), engine=engine))
    assert found.lines == []
    [alone] = found.alone
    assert said in alone


def test_another_backend_is_named(write: Write) -> None:
    [alone] = compare(write(entry(), backend="transformers")).alone
    assert "backend 'transformers' (theirs 'vllm')" in alone


def test_options_that_leave_the_model_as_it_is(write: Write) -> None:
    engine = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.85,
        "tensor_parallel_size": 4,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "quantization": None,
        "enable_lora": False,
        "hf_overrides": {},
        "load_format": "safetensors",
    }
    assert compare(write(entry(), engine=engine)).alone == []
    assert compare(write(entry(), engine={"dtype": "auto"})).alone == []


def test_a_task_of_another_definition_stands_alone(write: Write) -> None:
    name = "published:aime24"
    known = definition(name)
    for tasks, said in [
        ({}, "the run does not say what its task was made of"),
        (
            {name: {**known, "prompt": "mine.prompt"}},
            "prompt mine.prompt (theirs slot_vllm.evaluation.benchmarks.published.aime_prompt)",
        ),
        (
            {name: {**known, "metrics": {"extractive_match": "mine.Scorer 12"}}},
            "metric extractive_match by mine.Scorer 12 (theirs ",
        ),
        ({name: {**known, "metrics": {}}}, "metric extractive_match by None (theirs "),
        (
            {name: {**known, "metrics": {**known["metrics"], "more": "m 1"}}},
            "metric more (theirs none)",
        ),
    ]:
        found = compare(write(entry(), tasks=tasks))
        assert found.lines == []
        assert said in found.alone[0]


def test_answers_to_another_prompt_are_not_the_published_tasks(tmp_path: Path) -> None:
    generation = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768}
    settings: dict[str, Any] = {"model": MODEL, "generation": generation}
    asked = [{"name": "published:aime24", "data": str(MADE_UP)}]
    # Asked as published: a comparison, also of its scores by today's scorers.
    run = finish(tmp_path / "a", tasks=asked, **settings)
    rescore(run)
    for file in ("results.json", RESCORED):
        assert [line.ours.name for line in compare(run / file).lines] == ["baseline"]
    # Asked by lighteval's task of today.
    run = finish(tmp_path / "b", **settings)
    rescore(run, "published:aime24")
    found = compare(run / RESCORED)
    assert found.lines == []
    assert "prompt lighteval.tasks.tasks.aime.aime_prompt (theirs slot_vllm." in found.alone[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"generation": {**GENERATION, "temperature": 0.0}}, "temperature 0.0 (theirs 0.6)"),
        ({"generation": {**GENERATION, "top_p": 1.0}}, "top_p 1.0 (theirs 0.95)"),
        ({"generation": {**GENERATION, "max_new_tokens": 512}}, "max_new_tokens 512 (theirs 32768"),
        ({"generation": {**GENERATION, "max_new_tokens": None}}, "max_new_tokens None"),
        ({"generation": {**GENERATION, "min_p": 0.1}}, "min_p 0.1 (theirs 0.0)"),
        ({"engine": {"max_model_len": 4096}}, "engine.max_model_len 4096 (theirs 32768)"),
        ({"system_prompt": "Think."}, "system_prompt 'Think.' (theirs None)"),
        ({"chat_template": False}, "chat_template False (theirs True)"),
        ({"answers": 16}, "answers per problem 16 (theirs 1)"),
    ],
)
def test_other_decoding_stands_alone(write: Write, config: dict[str, Any], said: str) -> None:
    found = compare(write(entry(), **config))
    assert found.lines == []
    [alone] = found.alone
    assert alone.startswith("published:aime24, baseline (steps 0): not as published: ")
    assert said in alone


def test_lightevals_own_task_is_another(write: Write) -> None:
    found = compare(write(entry(task="aime24")))
    assert found.lines == []
    assert found.alone == [
        "aime24, baseline (steps 0): lighteval's aime24 is another definition than the published "
        "runs'; theirs is published:aime24"
    ]


def test_a_run_that_does_not_say_its_settings_stands_alone(write: Write) -> None:
    [alone] = compare(write(entry(arm=None))).alone
    assert alone.endswith("not as published: the run does not say all of the arm's settings")


def test_a_short_context_is_no_other_limit(write: Write) -> None:
    run = entry(task="published:math_500", samples=500)
    short = {
        "generation": {**GENERATION, "max_new_tokens": 4096},
        "engine": {"max_model_len": 4096},
    }
    assert compare(write(run, model="Qwen/Qwen2.5-Math-7B", **short)).lines
    assert compare(write(run, model=MODEL, **short)).lines == []


def test_the_configuration_may_name_the_published_model(write: Write) -> None:
    (line,) = compare(write(entry(), model="models/mine", published_model=MODEL)).lines
    assert line.published.model == MODEL.split("/")[1]
    with pytest.raises(ConfigError, match=r"config\.published_model='mine'"):
        compare(write(entry(), published_model="mine"))


def test_how_many_problems_would_tell(write: Write) -> None:
    # 0.5 and 0.5667: (1.95996 sqrt(2 m (1 - m)) + 0.84162 sqrt(0.25 + 0.24555))² / 0.0667²,
    # with m their mean.
    assert compare(write(entry())).needed == [
        "aime24, published: 0.5667 with steps 1, lr 0.1, 0.5000 without, of 30 problems: about 878 "
        "problems on each side would be needed to tell it from noise."
    ]


def test_an_unknown_model_names_the_known(write: Write) -> None:
    with pytest.raises(ConfigError) as error:
        compare(write(entry(), model="Qwen/Qwen2.5-7B"))
    assert "config.model='Qwen/Qwen2.5-7B': no published run" in str(error.value)
    assert "Qwen2.5-14B, Qwen2.5-32B, Qwen2.5-Math-1.5B" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "results.json: no such file"),
        ("{", "not JSON"),
        ("[]", "Input should be a valid dictionary"),
        ('{"config": {"model": "x"}}', "arms: Field required"),
        ('{"arms": [], "config": {}}', "config.model: it says no model"),
        ('{"arms": [{"name": 1, "value": 0}], "config": {"model": "x"}}', "arms.0.name"),
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
        ("task,model,steps,lr,accuracy\n", "no row stands below it"),
        ("task,model\naime24,x\n", "line 2, item 1: a row needs task, model, steps, lr, accuracy"),
        (
            "task,model,steps,lr,accuracy\naime25,x,0,1,0.5\n",
            "item 1: task='aime25'; allowed: aime24",
        ),
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


@pytest.mark.parametrize("name", ["table.csv", "table.txt", "table"])
def test_another_table(
    name: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / name
    table.write_text(TABLE.read_text().replace("Qwen-7B,0,0.1,0.5\n", "Qwen-7B,0,0.1,0.9\n"))
    assert cli.main(["compare-published", str(write(entry())), "--published", str(table)]) == 0
    assert "0.9000 ± 0.0557" in capsys.readouterr().out  # sqrt(0.09 / 29)


def test_a_table_from_a_pipe(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write(TABLE.read_text())
    arguments = ["compare-published", str(write(entry())), "--published", f"/dev/fd/{reading}"]
    assert cli.main(arguments) == 0
    os.close(reading)
    assert "within chance (z = +0.77)" in capsys.readouterr().out


def test_the_tasks_have_a_number_of_problems() -> None:
    assert PROBLEMS == {"aime24": 30, "math_500": 500, "gpqa:diamond": 198}
