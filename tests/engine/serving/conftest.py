"""One server for load, faults and fuzzing: a tiny model, and so little KV cache that requests are
preempted."""

from collections.abc import Iterator

import pytest

from tests.conftest import starts
from tests.engine.server import Server, serving

LONGEST = 280
LIMITS = {"max_steps": 20, "max_prompt_tokens": LONGEST, "max_concurrent": 2}
OPTIONS = (
    *("--dtype", "float32", "--max-model-len", "320", "--max-num-seqs", "16"),
    *("--block-size", "32", "--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "96"),
)


@pytest.fixture(scope="package")
@starts
def server(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tiny_model,
        LIMITS,
        tmp_path_factory.mktemp("server") / "log",
        *OPTIONS,
        extension="tests.engine.serving.faulty.FaultyExtension",
        environment={"VLLM_SERVER_DEV_MODE": "1"},
    ) as server:
        yield server
        assert server.alive(), server.said()[-3000:]
