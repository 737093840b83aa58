"""A run's configuration for tests, and one engine for all runs of the same options."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm import cli
from slot_vllm.evaluation.__main__ import main
from slot_vllm.evaluation.generation import VllmEngine
from tests.conftest import starts
from tests.engine.engines import keep_groups

Settings = dict[str, Any]
WriteConfig = Callable[..., Path]
RunMain = Callable[..., int]

PROBLEMS = Path(__file__).with_name("problems.jsonl")
ENGINE: Settings = {
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_seqs": 16,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**28,
}
ARMS: list[Settings] = [
    {"name": "baseline", "steps": 0},
    {"name": "slot", "steps": 3, "lr": 0.1},
]


@pytest.fixture
def write_config(tmp_path: Path, tiny_model: str) -> WriteConfig:
    """write_config(**settings): the path of a YAML file, the settings laid over a valid run."""

    def write(**settings: Any) -> Path:
        values: Settings = {
            "name": "test",
            "model": tiny_model,
            "engine": ENGINE,
            "slot": {"workspace_mb": 64},
            "generation": {"temperature": 0, "max_new_tokens": 8},
            "tasks": [{"name": "aime24", "data": str(PROBLEMS)}],
            "arms": ARMS,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**values, **settings}))
        return path

    return write


@pytest.fixture(scope="session")
def evaluation_engines() -> dict[str, VllmEngine]:
    """By their options."""
    return {}


@pytest.fixture
@starts
def shared_engines(
    evaluation_engines: dict[str, VllmEngine], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Runs of all tests use the same engines; the logging that they set up goes after the test."""

    def start(options: Mapping[str, Any]) -> VllmEngine:
        key = repr(sorted(options.items()))
        if key not in evaluation_engines:
            evaluation_engines[key] = VllmEngine(options)
            keep_groups(evaluation_engines[key]._llm)
        return evaluation_engines[key]

    monkeypatch.setattr("slot_vllm.evaluation.lighteval_model.VllmEngine", start)
    root, metrics = logging.getLogger(), logging.getLogger("lighteval.metrics")
    before = root.level, list(root.handlers), metrics.level

    yield

    for handler in set(root.handlers) - set(before[1]):
        handler.close()
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    metrics.setLevel(before[2])
    logging.captureWarnings(False)
    warnings.resetwarnings()


@pytest.fixture
def run_main(shared_engines: None) -> RunMain:
    """run_main(*arguments): the evaluation's command line in this process; gives its exit code."""
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture
def run_slot_vllm(shared_engines: None) -> RunMain:
    """run_slot_vllm(*arguments): the same for ``slot-vllm``."""
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def punkt() -> None:
    """NLTK's sentences, which setup gets; a machine without a network may have none."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        pytest.skip("NLTK's punkt_tab is not there: slot-vllm doctor --fix")
