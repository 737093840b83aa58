"""configs/schema.json is what the code makes, takes every ready configuration and finds typos."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from slot_vllm.evaluation import config as configuration
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
# What no run's file is.
OTHERS = {"shapes", "screen_gsm8k.yaml"}
READY = [path for path in sorted(CONFIGS.rglob("*.yaml")) if not OTHERS.intersection(path.parts)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_schema", ROOT / "scripts/make_schema.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faults() -> Callable[[Any], list[str]]:
    """faults(values): where the schema finds something wrong."""
    schema = json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda values: [error.json_path for error in validator.iter_errors(values)]


def test_the_committed_schema_is_what_the_code_makes(script: ModuleType) -> None:
    assert (CONFIGS / "schema.json").read_text(encoding="utf-8") == script.text()


def test_there_are_ready_files() -> None:
    assert len(READY) >= 55


@pytest.mark.parametrize("path", READY, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_ready_file_names_the_schema_and_fits_it(
    path: Path, faults: Callable[[Any], list[str]]
) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    mark, named = first.split("=")
    assert mark == "# yaml-language-server: $schema"
    assert (path.parent / named).resolve() == CONFIGS / "schema.json"
    assert faults(configuration._read(path)) == []


VALID: dict[str, Any] = {
    "name": "test",
    "model": "m",
    "tasks": [{"name": "aime24"}],
    "arms": [{"name": "baseline", "steps": 0}, {"name": "slot"}],
}


@pytest.mark.parametrize(
    "arm",
    [
        {"preset": "paper-vllm", "betas": [0.9, 0.99], "rounding": "model"},
        {"window": 4, "half_life": 2.5, "loss_tokens": "user"},
        {"window": "none", "half_life": None, "loss_tokens": ["user", "system"]},
        {"loss_tokens": 32, "control": {"append": "Be brief.", "temperature": 1}},
        {"control": {"examples": [{"problem": "1+1?", "answer": "2"}]}},
    ],
)
def test_what_an_arm_may_say(arm: dict[str, Any], faults: Callable[[Any], list[str]]) -> None:
    assert faults({**VALID, "arms": [{"name": "slot", **arm}]}) == []
    sweep = {"steps": [1], "lr": [0.1], "settings": arm}
    if "control" not in arm:
        assert faults({**VALID, "sweep": sweep}) == []
    configuration.RunConfig(**{**VALID, "arms": [{"name": "slot", **arm}]})


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"modle": "m"}, "$"),
        ({"generation": {"temprature": 0}}, "$.generation"),
        ({"generation": {"top_p": 1.5}}, "$.generation.top_p"),
        ({"generation": {"seed": "7"}}, "$.generation.seed"),
        ({"chat_template": "yes"}, "$.chat_template"),
        ({"tasks": []}, "$.tasks"),
        ({"arms": [{"name": "slot", "step": 3}]}, "$.arms[0]"),
        ({"arms": [{"name": "slot", "lr": "x"}]}, "$.arms[0].lr"),
        ({"arms": [{"name": "slot", "preset": "papre"}]}, "$.arms[0].preset"),
        ({"arms": [{"name": "slot", "loss_tokens": "usr"}]}, "$.arms[0].loss_tokens"),
        ({"sweep": {"steps": [1], "lr": [0.1], "settings": {"steps": 1}}}, "$.sweep"),
        ({"select": {"split": 1.0}}, "$.select"),
    ],
)
def test_a_typo_is_found(
    settings: dict[str, Any], where: str, faults: Callable[[Any], list[str]]
) -> None:
    assert faults(VALID) == []
    assert [found.startswith(where) for found in faults({**VALID, **settings})] == [True]


def test_keys_are_described(script: ModuleType) -> None:
    schema = script.schema()
    assert "get:NAME" in schema["properties"]["model"]["description"]
    assert "generated tokens" in schema["$defs"]["Arm"]["properties"]["window"]["description"]
    assert schema["description"] == "One run: every arm answers every task on the same engine."
