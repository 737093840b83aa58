"""The ``vllm`` command, whose processes are forked unless with ``--full``: vLLM spawns a CPU's, and
each then imports vLLM anew, for 10 s of CPU."""

import multiprocessing
import os
import shutil
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

# Says, in processes that tests start too, that vLLM starts processes its own way.
SPAWN = "SLOT_TEST_SPAWN"


def forks() -> bool:
    return SPAWN not in os.environ


def vllm_command(forked: bool) -> list[str]:
    """forked: False for what a user starts, in every tier."""
    if forked and forks():
        return [sys.executable, "-m", "tests.engine.vllm_command"]
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent))
    assert vllm, "the vllm command is missing beside this Python"
    return [vllm]


def fork() -> None:
    """Before vLLM starts any process in this one."""
    get_context = multiprocessing.get_context

    def forking(method: str | None = None) -> BaseContext:
        return get_context("fork" if method == "spawn" else method)

    multiprocessing.get_context = forking  # type: ignore[assignment]


def main() -> None:
    fork()
    from vllm.entrypoints.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
