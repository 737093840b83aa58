"""What can be wrong with prompts, stop strings and scorers is found before an engine starts."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lighteval.models.abstract_model import ModelConfig
from lighteval.tasks.requests import Doc

from slot_vllm import cli
from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.__main__ import main
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.lighteval_model import SlotModel
from tests.evaluation.conftest import PROBLEMS, WriteConfig

# A custom task whose prompts, stop strings and scores are what the test needs.
TASK = """
import copy
import random
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.requests import Doc, SamplingMethod
from lighteval.tasks.tasks import aime

import numpy

def prompt(line, task_name=""):
    {prompt}

class Scorer(SampleLevelComputation):
    def compute(self, doc, model_response, **settings):
        {score}

task = copy.deepcopy(aime.aime24)
task.name, task.prompt_function, task.stop_sequence = "mine", prompt, {stop}
task.metrics = [SampleLevelMetric("mine", True, SamplingMethod.GENERATIVE, Scorer(), numpy.mean)]
TASKS_TABLE = [task]
"""
PROMPT = 'return Doc(line["problem"], [line["answer"]], 0, task_name=task_name)'


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_options: Any) -> Any:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", start)


@pytest.fixture
def refused(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """refused(**settings): the one line that a run with them ends with."""

    def run(arguments: tuple[str, ...] = (), **settings: Any) -> str:
        out = tmp_path / "out"
        config = str(write_config(**settings))
        assert main(["--config", config, "--output-dir", str(out), *arguments]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert not out.exists()
        return said[0]

    return run


@pytest.fixture
def custom(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """custom(...): the settings of a run of one custom task."""

    def settings(prompt: str = PROMPT, score: str = "return 1", stop: str = "[]") -> dict[str, Any]:
        file = tmp_path / "custom.py"
        file.write_text(TASK.format(prompt=prompt, score=score, stop=stop))
        tasks = [{"name": "mine", "data": str(PROBLEMS)}]
        return {"custom_tasks": str(file), "tasks": tasks}

    return settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('system_prompt: "x \\ud83d"', "system_prompt: its character 3 cannot be encoded"),
        ('system_prompt: "\\ud83d\\ude00"', "write the character itself"),
        ('generation: {stop: ["a", "\\ude00"]}', "generation.stop.1: its character 1 cannot"),
        ('engine: {"a\\udc80": 1}', "engine: its character 2 cannot be encoded"),
        ('tasks: [{name: "\\udc80"}]', "tasks.0.name: its character 1 cannot be encoded"),
    ],
)
def test_settings_that_cannot_be_encoded(tmp_path: Path, settings: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    rest = "name: a\nmodel: m\narms: [{name: baseline, steps: 0}]\n"
    rest += "" if "tasks" in settings else "tasks: [{name: aime24}]\n"
    path.write_text(rest + settings + "\n")
    with pytest.raises(ConfigError, match=said) as error:
        configuration.load(path)
    str(error.value).encode()


def test_an_engine_option_that_vllm_lacks(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is fetched, and before the problems are read."""

    def early(_config: Any) -> Any:
        raise AssertionError("the engine's options were not looked at")

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.make_model", early)
    monkeypatch.setattr("slot_vllm.evaluation.run.tasks.load", early)
    said = refused(engine={"max-model-length": 1024})
    assert "engine.max-model-length: unknown key; near names: max_model_len" in said
    assert "vllm serve --help=all" in said
    assert "near names: none" in refused(engine={"qqqqq": 1})


@pytest.mark.parametrize(
    ("prompt", "stop", "said"),
    [
        (PROMPT.replace('line["problem"]', '"x\\ud83d"'), "[]", "character 2 cannot be encoded"),
        (PROMPT, '["a", "\\ude00"]', "its stop strings: its character 1 cannot be encoded"),
        (PROMPT, '["a", ""]', "stop cannot contain an empty string"),
        (PROMPT.replace('line["problem"]', '""'), "[]", "has no token"),
    ],
)
def test_what_a_task_makes_of_its_rows(
    prompt: str,
    stop: str,
    said: str,
    refused: Callable[..., str],
    custom: Callable[..., dict[str, Any]],
) -> None:
    line = refused(chat_template=False, **custom(prompt=prompt, stop=stop))
    assert said in line
    line.encode()


TEMPLATES = {
    "a role": "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0].content }}",
    "a text": "{% if 'letters' in messages[-1].content %}{{ raise_exception('No letters') }}"
    "{% endif %}{{ messages[-1].content }}",
    "a mistake": "{{ messages[0].content.nothing.there }}",
    "a number": "{{ messages[0].content + 1 }}",
    "a division": "{{ 1 // 0 }}",
}


def _with_template(model: str, to: Path, template: str) -> str:
    shutil.copytree(model, to)
    for file in to.glob("chat_template*"):
        file.unlink()
    path = to / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return str(to)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_text_that_a_chat_template_rejects(
    kind: str, tiny_model: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = _with_template(tiny_model, tmp_path / "model", TEMPLATES[kind])
    said = refused(model=model, system_prompt="Be kind." if kind == "a role" else None)
    assert "aime24|0, problem " in said
    assert "the model's chat template refuses its prompt: " in said
    assert "allowed: " in said


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("1 + \udc80?", "--prompt: its character 5 cannot be encoded"),
        ("x" * 3000, "engine.max_model_len=2048: the prompt of --prompt, problem prompt, has 3"),
        ("No letters", "the model's chat template refuses its prompt: TemplateError: No letters"),
    ],
)
def test_inspecting_such_a_prompt(
    prompt: str,
    said: str,
    tiny_model: str,
    tmp_path: Path,
    write_config: WriteConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = _with_template(tiny_model, tmp_path / "model", TEMPLATES["a text"])
    config = str(write_config(model=model))
    assert cli.main(["inspect", "--config", config, "--prompt", prompt]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_prompt_from_a_command_line_that_is_no_text(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = os.fsdecode(b"caf\xe9")  # as sys.argv holds it
    assert sys.getfilesystemencodeerrors() == "surrogateescape"
    assert cli.main(["inspect", "--config", str(write_config()), "--prompt", prompt]) == 2
    assert "--prompt: its character 4 cannot be encoded" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_for_what_the_run_says(refused: Callable[..., str]) -> None:
    said = refused(system_prompt="long " * 1000)
    assert "engine.max_model_len=2048: the prompt of aime24|0, problem" in said


def test_lighteval_s_own_command_line(
    write_config: WriteConfig, tiny_model: str, tmp_path: Path
) -> None:
    model = _with_template(tiny_model, tmp_path / "model", TEMPLATES["a text"])
    run = configuration.load(write_config(model=model))
    asked = SlotModel(ModelConfig(model_name=model), run)
    docs = [Doc(text, ["2"], 0, id=str(i)) for i, text in enumerate(("1 + 1?", "letters"))]
    with pytest.raises(ConfigError, match="problem 1: the model's chat template refuses"):
        asked.greedy_until(docs)


def _ifeval(path: Path, *rows: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    lines = [
        {"key": 100 + i, "prompt": "Do.", "instruction_id_list": [name], "kwargs": [arguments]}
        for i, (name, arguments) in enumerate([("punctuation:no_comma", {}), *rows])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"tasks": [{"name": "ifeval", "data": str(path)}]}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("combination:repeat_prompt", {}, "ValueError: prompt_to_repeat must be set"),
        ("combination:repeat_prompt", {"prompt": "x"}, "TypeError: "),
        ("length_constraints:number_words", {"num_words": "9", "relation": "at least"}, "TypeErr"),
        ("length_constraints:number_words", {"num_words": 9, "relation": "more"}, "ValueError: "),
        ("no_such:instruction", {}, "KeyError: 'no_such:instruction'"),
        ("punctuation:no_comma", {"num_words": 9}, "TypeError: "),
        # What the row does not say, lighteval's checkers draw.
        (
            "length_constraints:number_words",
            {"relation": "at least"},
            "what the row does not say is drawn at random",
        ),
        ("keywords:forbidden_words", {}, "what the row does not say is drawn at random"),
        (
            "language:response_language",
            {"language": None},
            "what the row does not say is drawn at random",
        ),
    ],
)
def test_rows_of_ifeval_that_no_answer_can_be_scored_by(
    name: str,
    arguments: dict[str, Any],
    said: str,
    tmp_path: Path,
    refused: Callable[..., str],
    punkt: None,
) -> None:
    line = refused(**_ifeval(tmp_path / "ifeval.jsonl", (name, arguments)))
    assert "ifeval, problem 1 (its own id: 101): no answer to it can be scored: " in line
    assert said in line


def test_a_row_of_ifeval_with_fewer_arguments_than_instructions(
    tmp_path: Path, refused: Callable[..., str], punkt: None
) -> None:
    path = tmp_path / "ifeval.jsonl"
    settings = _ifeval(path)
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "instruction_id_list": ["punctuation:no_comma"] * 2}))
    assert "problem 0 (its own id: 100): no answer to it can be scored: " in refused(**settings)


def test_a_scorer_that_fails_for_one_problem(
    refused: Callable[..., str], custom: Callable[..., dict[str, Any]]
) -> None:
    said = refused(**custom(score="return 1 // (int(doc.id) - 3)"))
    assert "mine, problem 3 (its own id: 4): no answer to it can be scored: ZeroDivision" in said


def test_answers_from_elsewhere_are_checked_alike(
    tmp_path: Path, punkt: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ifeval.jsonl"
    _ifeval(path, ("combination:repeat_prompt", {}))
    command = ["score", "--task", "ifeval", "--data", str(path), "--answers", str(path)]
    assert cli.main(command) == 2
    assert "problem 1 (its own id: 101): no answer to it can be" in capsys.readouterr().err


def test_the_check_leaves_python_s_own_draws_alone(
    custom: Callable[..., dict[str, Any]], write_config: WriteConfig
) -> None:
    import random

    from slot_vllm.evaluation import scoring, tasks

    [task] = tasks.load(configuration.load(write_config(**custom(score="return random.random()"))))
    before = random.getstate()
    scoring.check(task)
    assert random.getstate() == before
