"""Controls: what an arm does in SLOT's place or besides it, and what they may not be."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lighteval.models.abstract_model import ModelConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import as_published
from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.directory import RunDirectory, read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import every_eval_ever
from slot_vllm.evaluation.inspection import inspect
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.report.sample_browser import content
from slot_vllm.evaluation.stored_run import read_all
from slot_vllm.evaluation.table import scores_table
from tests.conftest import ROOT
from tests.evaluation.conftest import ARMS, ENGINE, PROBLEMS, RunMain, WriteConfig
from tests.evaluation.finished_runs import finish
from tests.evaluation.test_inspection import FakeEngine

EXAMPLE = {"problem": "2 + 2?", "answer": "It is 4."}


def _arm(**control: Any) -> dict[str, Any]:
    return {"name": "other", "steps": 0, "control": control}


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"arms": [{"name": "baseline", "steps": 0, "control": {"append": "x"}}]},
        "arms.0.control: 'baseline' has none",
    ),
    ({"arms": [_arm()]}, "arms.0.control={}: it is empty; allowed: one or several of append, exa"),
    ({"arms": [_arm(apend="x")]}, "arms.0.control.apend: unknown key; allowed: append, examples"),
    ({"arms": [_arm(append=" \n")]}, "a text that is not blank is required"),
    ({"arms": [_arm(examples=[])]}, "arms.0.control.examples=[]"),
    ({"arms": [_arm(examples=[{"problem": "1?", "answer": ""}])]}, "examples.0.answer=''"),
    ({"arms": [_arm(examples=[{"problem": "1?"}])]}, "arms.0.control.examples.0.answer: missing"),
    ({"examples": [{"problem": "", "answer": "1"}]}, "examples.0.problem=''"),
    ({"arms": [_arm(temperature=-1)]}, "arms.0.control.temperature=-1"),
    ({"arms": [_arm(temperature=0)]}, "arms.0.control.temperature=0.0: it is the run's own"),
    ({"arms": [_arm(regex="")]}, "arms.0.control.regex=''"),
    ({"arms": [_arm(bias={"strength": 1})]}, "arms.0.control.bias.pseudo_count: missing"),
    ({"arms": [_arm(bias={"strength": 0, "pseudo_count": 1})]}, "strength=0"),
    ({"arms": [{"name": "slot", "steps": 0}]}, "and no control, and only that one, is named"),
]


@pytest.mark.parametrize(("settings", "said"), BAD, ids=[said for _, said in BAD])
def test_what_a_control_may_not_be(
    write_config: WriteConfig, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        configuration.load(write_config(**settings))
    assert "\n" not in str(error.value)


def test_an_arm_with_a_control_has_slot_only_if_it_says_so(write_config: WriteConfig) -> None:
    control = {"append": "x", "temperature": 0.7}
    arms = [
        {"name": "alone", "control": control},
        {"name": "both", "control": control, "lr": 0.2},
        {"name": "preset", "control": control, "preset": "paper-vllm"},
    ]
    config = configuration.load(write_config(arms=arms))
    assert [arm.steps for arm in config.arms] == [0, 5, 5]
    alone, both, _ = config.arms
    assert alone.request_args() == {"slot_steps": 0}
    assert "slot_control" not in both.request_args() and both.request_args()["slot_lr"] == 0.2
    assert config.temperatures == [0.7] * 3
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    assert alone.control and alone.control.words == "append + temperature 0.7"


def _model(config: Path) -> SlotModel:
    run = configuration.load(config)
    return SlotModel(ModelConfig(model_name=run.model), run)


def _doc(**values: Any) -> Doc:
    return Doc(query="1 + 1?", choices=["2"], gold_index=0, id="7", task_name="task|0", **values)


def test_what_is_asked(write_config: WriteConfig) -> None:
    arms = [*ARMS, _arm(append="In words.", examples=[EXAMPLE])]
    first = {"problem": "1 + 0?", "answer": "1"}
    settings = {"arms": arms, "examples": [first], "system_prompt": "Be kind."}
    model = _model(write_config(**settings))
    doc = _doc()
    turns = "<|system|>Be kind.<|end|><|user|>1 + 0?<|end|><|assistant|>1<|end|>"
    own = "<|user|>2 + 2?<|end|><|assistant|>It is 4.<|end|>"
    for arm in model.run.arms[:2]:
        assert f"{turns}<|user|>1 + 1?<|end|>" in model.prompt(doc, arm)
    assert f"{turns}{own}<|user|>1 + 1?\n\nIn words.<|end|>" in model.prompt(doc, model.run.arms[2])
    # What is answered is still the same item.
    assert (doc.query, doc.fewshot_samples) == ("1 + 1?", [])
    plain = _model(write_config(**settings, chat_template=False))
    said = plain.prompt(doc, plain.run.arms[2])
    assert said == "Be kind.\n\n1 + 0? 1\n\n2 + 2? It is 4.\n\n1 + 1?\n\nIn words."


def test_what_the_engine_is_asked(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotModel, "max_length", 100)
    bias = {"strength": 2.0, "pseudo_count": 0.5}
    control = {"temperature": 0.7, "regex": "[0-9]+", "bias": bias}
    arms = [*ARMS, {"name": "all", "steps": 2, "lr": 0.1, "control": control}]
    model = _model(write_config(arms=arms))
    doc = _doc()
    baseline, slot, other = model.run.arms
    plain = model.request(doc, slot).sampling
    assert (plain["temperature"], "logit_bias" in plain) == (0, False)
    with pytest.raises(KeyError):  # rather than an answer without its bias
        model.request(doc, other)
    model.prepare([(doc, arm) for arm in model.run.arms])
    asked = model.request(doc, other)
    assert asked.sampling["temperature"] == 0.7 and asked.sampling["seed"] == plain["seed"]
    assert asked.sampling["structured_outputs"].regex == "[0-9]+"
    assert asked.sampling["logit_bias"].keys() == {*asked.prompt[1:]}
    assert all(value > 0 for value in asked.sampling["logit_bias"].values())
    assert asked.sampling["extra_args"]["slot_steps"] == 2
    assert asked.text == model.prompt(doc, other) == model.prompt(doc, baseline)


def test_a_bias_never_needs_two_models_at_once(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = _arm(bias={"strength": 1, "pseudo_count": 1})
    model = _model(write_config(arms=[*ARMS, bias]))
    events: list[str] = []

    class Engine:
        def close(self) -> None:
            events.append("closed")

    def read(_run: Any, prompts: Any) -> list[str]:
        events.append(f"read {len(prompts)}")
        return ["found"] * len(prompts)

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.frequencies", read)
    model.engine = Engine()  # type: ignore[assignment]
    asked = [(_doc(), arm) for arm in model.run.arms]
    model.prepare(asked[:2])
    assert events == []
    model.prepare(asked)
    model.prepare(asked)
    assert events == ["closed", "read 1"]


@pytest.mark.parametrize(
    ("control", "engine", "said"),
    [
        ({"regex": "(["}, {}, "arms.other.control: vLLM refuses: "),
        (
            {"bias": {"strength": 1, "pseudo_count": 1}},
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "arms.other.control: vLLM refuses: The min_p and logit_bias",
        ),
    ],
)
def test_what_vllm_would_refuse_is_told_before_it_starts(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    control: dict[str, Any],
    engine: dict[str, Any],
    said: str,
) -> None:
    def no_engine(_options: Any) -> Any:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", no_engine)
    config = write_config(arms=[*ARMS, _arm(**control)], engine={**ENGINE, **engine})
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_task_that_does_not_go_with_a_control(
    write_config: WriteConfig, run_main: RunMain, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_config(
        arms=[_arm(examples=[EXAMPLE])], tasks=[{"name": "gsm8k|2", "data": str(PROBLEMS)}]
    )
    assert run_main("--config", few) == 2
    assert "its prompts have examples of its own" in capsys.readouterr().err
    several = write_config(
        arms=[*ARMS, _arm(temperature=0)],
        generation={"temperature": 1.0, "max_new_tokens": 2},
        tasks=[{"name": "aime24_gpassk", "data": str(PROBLEMS)}],
    )
    assert run_main("--config", several) == 2
    assert "control.temperature=0: aime24_gpassk draws 48" in capsys.readouterr().err


def test_sampled_answers_of_a_greedy_run_take_whole_prompts(write_config: WriteConfig) -> None:
    from slot_vllm.evaluation.generation import engine_options

    greedy = configuration.load(write_config(arms=ARMS[:1]))
    assert "enable_chunked_prefill" not in engine_options(greedy)
    arms = [*ARMS[:1], _arm(temperature=0.7)]
    warm = configuration.load(write_config(arms=arms))
    assert engine_options(warm)["enable_chunked_prefill"] is False


def test_another_control_is_another_run(tmp_path: Path) -> None:
    arms = [*ARMS, _arm(append="x", bias={"strength": 1.0, "pseudo_count": 1.0})]
    directory = RunDirectory(finish(tmp_path / "run", arms=arms))
    values = yaml.safe_load((directory.path / "config.yaml").read_text())

    def check(*more: dict[str, Any]) -> None:
        directory.check(RunConfig.model_validate({**values, "arms": [*ARMS, *more]}), True, False)

    check(arms[2], {"name": "new", "control": {"append": "y"}})
    for control, said in [
        ({**arms[2]["control"], "append": "y"}, r"arms\.other\.control\.append='y', there 'x'"),
        ({**arms[2]["control"], "temperature": 0.5}, r"control\.temperature=0\.5, there None"),
        ({"append": "x", "bias": {"strength": 2.0, "pseudo_count": 1.0}}, r"bias\.strength=2\.0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check(_arm(**control))
    with pytest.raises(ConfigError, match=r"examples\.0\.problem="):
        directory.check(
            RunConfig.model_validate({**values, "examples": [EXAMPLE]}),
            resume=True,
            overwrite=False,
        )


def test_what_is_said_of_an_arm_with_a_control(tmp_path: Path) -> None:
    both = {"name": "both", "steps": 5, "lr": 0.1, "control": {"temperature": 0.7, "append": "x"}}
    path = finish(tmp_path / "run", arms=[*ARMS, _arm(append="x"), both])
    rows = read_results(path / "results.json")
    baseline, slot, other, last = rows.arms
    assert other.arm and other.arm.control and other.arm.control.append == "x"
    grid = scores_table(rows.arms)
    cells = list(dict.fromkeys(grid.columns[3].cells))
    assert cells == ["-", "3, 0.1", "append", "5, 0.1 + append + temperature 0.7"]
    # All are compared with the baseline, problem by problem.
    assert baseline.difference is None
    assert all(row.p_value_holm is not None for row in (slot, other, last))
    # An arm without SLOT, but none of those that are published.
    assert as_published.other_arm(baseline) == []
    assert as_published.other_arm(other) == ["control append (theirs none)"]
    [file] = every_eval_ever.write(path, tmp_path / "every.json")
    told = {
        one["generation_config"]["additional_details"]["slot_arm"]: one["generation_config"]
        for one in json.loads(file.read_text())["evaluation_results"]
    }
    assert told["both"]["generation_args"]["temperature"] == 0.7
    assert told["other"]["generation_args"]["temperature"] == 0.0
    assert json.loads(told["other"]["additional_details"]["control"]) == {"append": "x"}


def test_delta_is_inspected_as_the_arm_asks(write_config: WriteConfig) -> None:
    control = {"append": "In words.", "bias": {"strength": 1, "pseudo_count": 1}, "regex": "a"}
    arms = [{"name": "slot", "steps": 3, "lr": 0.1, "control": control}]
    model = _model(write_config(arms=arms))
    model.engine = FakeEngine([np.ones(4, np.float32)], seed=0)  # type: ignore[assignment]
    doc = Doc("1 + 1?", ["2"], 0, id="0", task_name="task|0")
    [arm] = model.run.arms
    [prompt] = inspect(model, arm, "task", [doc]).prompts
    assert prompt.prompt == model.prompt(doc, arm)
    assert "1 + 1?\n\nIn words." in prompt.prompt


def test_controls_on_one_engine(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    asked: dict[str, Any] = {
        "append": "Give the answer alone.",
        "examples": [EXAMPLE],
        "regex": "The answer is [0-9]{1,3}[.]",
    }
    bias = {"strength": 1.0, "pseudo_count": 1.0}
    arms: list[dict[str, Any]] = [
        {"name": "baseline", "steps": 0},
        {"name": "asked", "control": asked},
        {"name": "asked-slot", "control": asked, "steps": 5, "lr": 0.1},
        {"name": "bias", "control": {"bias": bias}},
        {"name": "warm", "control": {"temperature": 0.7}},
    ]
    out = tmp_path / "out"
    config = ROOT / "tests" / "evaluation" / "demo.yaml"
    run = ["--config", config, "--output-dir", out, "--set", f"arms={json.dumps(arms)}"]
    run += ["tasks.0.max_samples=6", "generation.max_new_tokens=40"]
    assert run_main(*run) == 0
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    of = {arm["name"]: {s["id"]: s for s in lines if s["arm"] == arm["name"]} for arm in arms}
    assert {len(found) for found in of.values()} == {6}
    for name in ("asked", "asked-slot"):
        for problem, answer in of[name].items():
            assert re.fullmatch(asked["regex"], answer["completion"])
            assert "It is 4." in answer["prompt"] and "\n\nGive the answer" in answer["prompt"]
            assert answer["gold"] == of["baseline"][problem]["gold"]
            assert answer["item_sha256"] == of["baseline"][problem]["item_sha256"]
            assert answer["seed"] == of["baseline"][problem]["seed"]
            assert (answer["first_loss"] is None) == (name == "asked")
    texts = {name: [s["completion"] for s in found.values()] for name, found in of.items()}
    assert not any(re.fullmatch(asked["regex"], text) for text in texts["baseline"])
    for name in ("bias", "warm"):
        assert texts[name] != texts["baseline"]
        assert [s["prompt"] for s in of[name].values()] == [
            s["prompt"] for s in of["baseline"].values()
        ]
    results = json.loads((out / "results.json").read_text())
    assert results["config"]["arms"][3]["control"]["bias"] == bias
    assert all(entry["p_value"] is not None for entry in results["arms"][1:])
    # The page says which prompt it shows.
    shown = {arm["arm"]: arm["problems"] for arm in content(read_all([out]))["arms"]}
    assert all(problem["own_prompt"] for problem in shown["asked"])
    assert not any(problem["own_prompt"] for problem in shown["bias"])
    assert "asked (append + examples + regex)" in (out / "report.html").read_text()

    # The rest of an interrupted run is answered in the same way: what is sampled has its seeds.
    (out / "results.json").unlink()
    kept = [line for line in lines if line["id"] == lines[0]["id"]]
    (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert run_main(*run, "--resume") == 0
    again = json.loads((out / "results.json").read_text())
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
