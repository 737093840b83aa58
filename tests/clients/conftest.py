"""One server and one offline engine of the demo model, and the clients' environment."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.environment import NotInstalledError, clients_environment
from tests.clients.recipe import question
from tests.conftest import ROOT, starts
from tests.engine.engines import Engines
from tests.engine.server import Server, serving

# The server's name of the model, and its path in a client's folder.
MODEL = "demo"
LENGTH = 512
# What asks for no SLOT has none, so that a setting that gets lost on the way is found. The learning
# rate is one at which this model answers otherwise.
SLOT = {"steps": 0, "lr": 1.0}


@pytest.fixture(scope="session")
@starts
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    model = str(ROOT / "models/demo")
    options = ("--dtype", "float32", "--max-model-len", str(LENGTH), "--served-model-name", MODEL)
    with serving(model, SLOT, log, *options, forked=False) as server:
        yield server
        assert server.alive(), server.said()[-3000:]


@pytest.fixture(scope="session")
@starts
def offline() -> Iterator[dict[int, str]]:
    """The answer of ``LLM.chat`` to the recipes' question, by steps."""
    from vllm import SamplingParams

    engines = Engines()
    options = {"max_model_len": LENGTH, "num_gpu_blocks_override": 64, "skip_tokenizer_init": False}
    llm = engines.get(str(ROOT / "models/demo"), SLOT, **options)

    def answer(steps: int) -> str:
        sampling = SamplingParams(temperature=0, max_tokens=64, extra_args={"slot_steps": steps})
        (output,) = llm.chat(question(), sampling, use_tqdm=False)
        text: str = output.outputs[0].text
        return text

    answers = {steps: answer(steps) for steps in (0, 5)}
    assert answers[0] != answers[5]
    yield answers
    engines.shut_down()


@pytest.fixture(scope="session")
@starts
def clients() -> Path:
    """The environment of the clients that nobody here wrote."""
    try:
        return clients_environment()
    except NotInstalledError as error:
        pytest.skip(f"the clients cannot be installed: {error}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a client runs; the model is in it by its name."""
    (tmp_path / MODEL).symlink_to(ROOT / "models/demo")
    return tmp_path


@pytest.fixture
@starts
def run(folder: Path) -> Callable[..., str]:
    """run(*command, programs=directory of its programs, **variables): what it writes to stdout."""

    def run(*command: str, programs: Path, **variables: str) -> str:
        environment = {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout

    return run


@pytest.fixture
def run_client(run: Callable[..., str], clients: Path) -> Callable[..., str]:
    """As ``run``, in the clients' environment alone."""

    def run_client(*command: str) -> str:
        # inspect_ai's own display and logs; litellm else asks the web what models cost.
        variables = {"INSPECT_DISPLAY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        return run(*command, programs=clients / "bin", PYTHONPATH="", **variables)

    return run_client


@pytest.fixture
def run_vllm(run: Callable[..., str]) -> Callable[..., str]:
    """As ``run``, with the ``vllm`` command of the environment that is tested. An engine that it
    starts has ``SLOT``."""
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    variables = {f"SLOT_{name.upper()}": str(value) for name, value in SLOT.items()}
    variables["PYTHONPATH"] = os.pathsep.join(paths)

    def run_vllm(*command: str) -> str:
        return run(*command, programs=Path(sys.executable).parent, **variables)

    return run_vllm
