"""One server for load, faults and fuzzing: a tiny model, and so little KV cache that requests are
preempted."""

from collections.abc import Iterator

import psutil
import pytest

from tests.conftest import starts
from tests.engine.cases import Case, random_tokens
from tests.engine.server import Server, serving

LONGEST = 280
LIMITS = {"max_steps": 20, "max_prompt_tokens": LONGEST, "max_concurrent": 2, "receipts": 1000}
OPTIONS = (
    # So that all of vLLM's routes are there, and SLOT's.
    "--enable-scale-out",
    *("--dtype", "float32", "--max-model-len", "320", "--max-num-seqs", "16"),
    *("--block-size", "32", "--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "96"),
)
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_PLUGINS": "slot_vllm,slot_stats"}
# What is asked beside others, and at other doors.
BYSTANDERS = [
    Case(random_tokens(n, seed=6000 + n), steps, lr, 24)
    for n, (steps, lr) in zip(
        (30, 70, 110, 150), ((5, 0.1), (0, 0.1), (3, 0.5), (5, 1.0)), strict=True
    )
]


def resident(server: Server) -> int:
    """Bytes of the server's processes together."""
    parent = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True)))


@pytest.fixture(scope="package")
@starts
def server(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tiny_model,
        LIMITS,
        tmp_path_factory.mktemp("server") / "log",
        *OPTIONS,
        extension="tests.engine.serving.faulty.FaultyExtension",
        environment=ENVIRONMENT,
    ) as server:
        yield server
        assert server.alive(), server.said()[-3000:]
