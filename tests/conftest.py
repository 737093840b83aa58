"""Options, environment and models of the whole suite."""

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
from filelock import FileLock

from tests.engine.answers import RECORD
from tests.engine.vllm_command import SPAWN
from tests.groups import Groups, is_alone

ROOT = Path(__file__).parents[1]

# Before anything imports vLLM or transformers.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads of several processes that wait for one another on the same cores make them many times as
# slow; and vLLM would bind all servers' workers to the same core. What needs threads sets them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("slot", deadline=None)
hypothesis.settings.load_profile("slot")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the long checks")
    parser.addoption(
        "--quick", action="store_true", help="only what starts no engine, server or Python process"
    )
    parser.addoption(
        "--record-answers",
        action="store_true",
        help="keep the transformers reference's answers that are not recorded yet",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-answers"):
        os.environ[RECORD] = "1"
    if config.getoption("--full"):
        os.environ[SPAWN] = "1"
    else:
        _start_quickly()
    if config.getoption("--quick"):
        config.pluginmanager.register(NothingStarts())


def _start_quickly() -> None:
    """Spares this process, and those that tests start, what no test looks at."""
    # What vLLM compiles for itself where a model is not traced: how it finds a token's rank, and a
    # rank's part of the vocabulary.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    folder = str(Path(__file__).with_name("startup"))
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *paths])
        import tests.startup.sitecustomize  # noqa: F401


def pytest_unconfigure() -> None:
    # Of ``frozen_heap``; else extensions report what they take for leaks.
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [
        item
        for item in items
        if (not config.getoption("--full") and item.get_closest_marker("full"))
        or (config.getoption("--quick") and starts_something(item))
    ]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]
    if config.getoption("dist", "no") == "loadgroup":
        # Those that are alone start first, beside others.
        items.sort(key=lambda item: not is_alone(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups | None:
    return Groups(config, log) if config.getoption("dist") == "loadgroup" else None


_Function = TypeVar("_Function", bound=Callable[..., Any])


def starts(fixture: _Function) -> _Function:
    """Below ``@pytest.fixture``: it starts an engine, a server or a Python process, or lets the
    test do so. Tests that use it, by whatever way, are not of ``--quick``."""
    fixture.starts_something = True  # type: ignore[attr-defined]
    return fixture


def starts_something(item: pytest.Item) -> bool:
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    return any(getattr(used.func, "starts_something", False) for own in definitions for used in own)


class NothingStarts:
    """With ``--quick``, a test that starts Python by itself after all is skipped when it does."""

    def __init__(self) -> None:
        self._testing = False
        sys.addaudithook(self._audit)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self._testing = True
        try:
            return (yield)
        finally:
            self._testing = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and self._testing:
            command = arguments[1]
            words = [command] if isinstance(command, str | bytes) else list(command)
            if "python" in Path(os.fsdecode(words[0])).name or "--port" in words:
                pytest.skip("it starts a Python process")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What is there before is no more looked at when garbage is collected. statsmodels does that
    with every correction, for half a second each among all that vLLM and lighteval import."""
    gc.freeze()


@pytest.fixture(autouse=True)
def vllm_reads_its_environment() -> None:
    """From the start of an engine on vLLM keeps what it has read, in the tests after it, too."""
    if "vllm.envs" in sys.modules:
        from vllm import envs

        envs.disable_envs_cache()


# Architecture, tied, vocabulary: what the default suite asks for, made at once by one process, as
# importing transformers takes longer than making them.
TINY_MODELS: tuple[tuple[str, bool, int | None], ...] = (
    ("qwen2", True, None),
    ("qwen2", False, None),
    ("llama", False, None),
    ("llama", False, 30),
    ("llama", False, 263),
    ("llama", True, 300_000),
    ("gemma2", True, None),
)
# In a process of its own: importing transformers' models first disturbs vLLM's.
MAKE_TINY_MODELS = """
import json, sys
from pathlib import Path
from make_tiny_model import make_tiny_model

for path, architecture, tied, vocabulary in json.loads(sys.argv[1]):
    make_tiny_model(Path(path), architecture, tied, vocabulary=vocabulary)
"""


@pytest.fixture(scope="session")
@starts
def tiny_models() -> Callable[..., str]:
    """tiny_models(architecture, tied, vocabulary=None): the path of a tiny random model, which is
    kept in ``.cache/`` for later runs. Tests only read it."""
    script = ROOT / "scripts/make_tiny_model.py"
    libraries = "".join(version(name) for name in ("torch", "transformers", "tokenizers"))
    key = hashlib.sha256(script.read_bytes() + libraries.encode()).hexdigest()[:16]
    directory = ROOT / ".cache/tiny_models" / key

    def of(kind: tuple[str, bool, int | None]) -> Path:
        architecture, tied, vocabulary = kind
        return directory / f"{architecture}-{'tied' if tied else 'untied'}-{vocabulary}"

    def path(architecture: str, tied: bool, vocabulary: int | None = None) -> str:
        kind = architecture, tied, vocabulary
        if not of(kind).exists():
            directory.mkdir(parents=True, exist_ok=True)
            # Of several test processes one makes them.
            with FileLock(directory / "lock"):
                missing = [(str(of(k)), *k) for k in {kind, *TINY_MODELS} if not of(k).exists()]
                if missing:
                    command = [sys.executable, "-c", MAKE_TINY_MODELS, json.dumps(missing)]
                    subprocess.run(command, cwd=script.parent, check=True)
        return str(of(kind))

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
