"""Options, environment and models of the whole suite."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]

# Before anything imports vLLM or transformers.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("slot", deadline=None)
hypothesis.settings.load_profile("slot")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long checks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    long = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tiny_models(architecture, tied, vocabulary=None): the path of a tiny random model."""
    directory = tmp_path_factory.mktemp("models")

    def path(architecture: str, tied: bool, vocabulary: int | None = None) -> str:
        model = directory / f"{architecture}-{'tied' if tied else 'untied'}-{vocabulary}"
        if not model.exists():
            # In a process of its own: importing transformers' models first disturbs vLLM's.
            command = [sys.executable, str(ROOT / "scripts/make_tiny_model.py"), str(model)]
            command += ["--architecture", architecture, *([] if tied else ["--untied"])]
            command += ["--vocabulary", str(vocabulary)] if vocabulary else []
            subprocess.run(command, check=True)
        return str(model)

    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Callable[[str, bool], str]) -> str:
    """A tiny Qwen2 with tied embeddings."""
    return tiny_models("qwen2", True)


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """Real benchmark items, which are not part of the repository."""
    path = ROOT.parent / "shared" / "benchmarks"
    if not path.is_dir():
        pytest.skip("../shared/benchmarks is not there; its items may not be copied into this repo")
    return path


@pytest.fixture(scope="session")
def prompts(benchmarks: Path) -> Path:
    """The published prompts and scores, beside the benchmarks."""
    return benchmarks.parent / "prompts"
