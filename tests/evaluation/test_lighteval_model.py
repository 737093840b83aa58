"""The model under lighteval's own command line, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lighteval.models.abstract_model import ModelConfig
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_loader import load_custom_model
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.generation import Completion, OnTokens, Request
from slot_vllm.evaluation.lighteval_model import SlotModel
from tests.conftest import ROOT
from tests.engine.vllm_command import forks
from tests.evaluation.conftest import ARMS, PROBLEMS, WriteConfig

FILE = Path(__file__).parents[2] / "slot_vllm" / "evaluation" / "lighteval_model.py"

# lighteval's registry downloads a file of a benchmark that is not used here.
OFFLINE = """
import requests

def get(*arguments, **settings):
    response = requests.Response()
    response.status_code = 404
    return response

requests.get = get
"""

# lighteval's own aime24, from a local directory.
TASKS = """
from dataclasses import replace
from lighteval.tasks.tasks.aime import aime24

TASKS_TABLE = [replace(aime24, name="local_aime", hf_repo={directory!r})]
"""


def _doc(**values: object) -> Doc:
    return Doc(query="1 + 1?", choices=["2"], gold_index=0, id="7", task_name="task|0", **values)


def test_lighteval_s_command_line(
    write_config: WriteConfig, tiny_model: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(PROBLEMS.read_text())
    (tmp_path / "tasks.py").write_text(TASKS.format(directory=str(tmp_path / "data")))
    (tmp_path / "offline").mkdir()
    # Found in place of ours.
    startup = "import tests.startup.sitecustomize\n" if forks() else ""
    (tmp_path / "offline" / "sitecustomize.py").write_text(startup + OFFLINE)
    command = [sys.executable, "-m", "lighteval", "custom", tiny_model, str(FILE), "local_aime"]
    command += ["--custom-tasks", str(tmp_path / "tasks.py")]
    command += ["--output-dir", str(tmp_path / "out"), "--max-samples", "3"]
    paths = [str(tmp_path / "offline"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "SLOT_CONFIG": str(write_config()),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "slot: 3/3" in done.stderr
    assert "pass@k:k=1" in done.stdout
    assert list((tmp_path / "out").rglob("results_*.json"))


def test_the_run_comes_from_the_environment(
    write_config: WriteConfig, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CustomModelConfig(model_name=tiny_model, model_definition_file_path=str(FILE))
    monkeypatch.delenv("SLOT_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="SLOT_CONFIG: not set"):
        load_custom_model(config)

    append = {"name": "append", "control": {"append": "In words."}}
    monkeypatch.setenv("SLOT_CONFIG", str(write_config(arms=[append, *ARMS])))
    assert load_custom_model(config).arm.name == "slot"
    monkeypatch.setenv("SLOT_ARM", "baseline")
    assert load_custom_model(config).arm.name == "baseline"
    monkeypatch.setenv("SLOT_ARM", "other")
    with pytest.raises(
        ConfigError, match="SLOT_ARM='other': no such arm; allowed: append, baseline, slot"
    ):
        load_custom_model(config)


def test_lighteval_asks_as_the_arm_s_control_says(
    write_config: WriteConfig, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    class Engine:
        max_model_len = 100

        def __init__(self, _options: object) -> None:
            pass

        def generate(
            self, requests: Sequence[Request], on_tokens: OnTokens
        ) -> Iterator[Completion]:
            asked.extend(requests)
            yield from (Completion(r, ["4"], [[4]], ["stop"]) for r in requests)

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", Engine)
    bias = {"strength": 1, "pseudo_count": 1}
    control = {"append": "In words.", "temperature": 0.7, "bias": bias}
    arms = [*ARMS, {"name": "other", "control": control}]
    monkeypatch.setenv("SLOT_CONFIG", str(write_config(arms=arms)))
    monkeypatch.setenv("SLOT_ARM", "other")
    model = SlotModel(ModelConfig(model_name=tiny_model))
    assert model.config.generation_parameters.temperature == 0.7
    [response] = model.greedy_until([_doc()])
    assert "1 + 1?\n\nIn words." in response.input
    [request] = asked
    assert (request.sampling["temperature"], request.text) == (0.7, response.input)
    assert request.sampling["logit_bias"] and request.sampling["extra_args"] == {"slot_steps": 0}


def test_log_likelihoods_are_refused(write_config: WriteConfig, tiny_model: str) -> None:
    model = _model(write_config, tiny_model)
    for method in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="choose a generative task"):
            method([_doc()])


def test_seeds_depend_on_run_task_and_problem(write_config: WriteConfig, tiny_model: str) -> None:
    model = _model(write_config, tiny_model)
    other = _model(write_config, tiny_model, generation={"seed": 1})
    doc = _doc()
    assert model.seed(doc) == model.seed(_doc())
    assert 0 <= model.seed(doc) < 2**31
    doc.id = "8"
    assert len({model.seed(doc), model.seed(_doc()), other.seed(doc), other.seed(_doc())}) == 4


def test_chat_template(write_config: WriteConfig, tiny_model: str) -> None:
    templated = _model(write_config, tiny_model, system_prompt="Be kind.")
    assert "<|system|>Be kind.<|end|><|user|>1 + 1?<|end|>" in templated.prompt(_doc())
    assert not templated.add_special_tokens
    plain = _model(write_config, tiny_model, chat_template=False)
    assert plain.prompt(_doc()) == "1 + 1?"
    assert plain.add_special_tokens


def test_a_benchmark_s_own_system_prompt(write_config: WriteConfig, tiny_model: str) -> None:
    doc = _doc()
    doc.task_name = "published:gsm8k|0"
    own = _model(write_config, tiny_model)
    assert own.prompt(doc).startswith("<|system|>You are a helpful assistant that solves")
    assert "<|system|>" not in own.prompt(_doc())
    other = _model(write_config, tiny_model, system_prompt="Be kind.")
    assert "<|system|>Be kind.<|end|>" in other.prompt(doc)


def test_what_the_engine_is_asked(
    write_config: WriteConfig, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotModel, "max_length", 100)
    generation = {"temperature": 0.6, "top_p": 0.95, "stop": ["!"]}
    model = _model(write_config, tiny_model, generation=generation, chat_template=False)
    doc = _doc(generation_size=256, stop_sequences=["Question:"])
    baseline, slot = (model.request(doc, arm).sampling for arm in model.run.arms)
    assert baseline.pop("extra_args") == {"slot_steps": 0}
    assert slot.pop("extra_args")["slot_steps"] == 3
    assert baseline == slot
    assert slot == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "n": 1,
        "max_tokens": 100 - len(model.request(doc, model.arm).prompt),
        "seed": model.seed(doc),
        "stop": ["Question:", "!"],
    }


def _model(write_config: WriteConfig, name: str, **settings: object) -> SlotModel:
    run = configuration.load(write_config(**settings))
    return SlotModel(ModelConfig(model_name=name), run)
