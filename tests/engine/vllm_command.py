"""The ``vllm`` command, and others that run vLLM, whose processes are forked unless with
``--full``: vLLM spawns a CPU's, and each then imports vLLM anew, for 10 s of CPU."""

import multiprocessing
import os
import runpy
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
        return module_command("vllm.entrypoints.cli.main")
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent))
    assert vllm, "the vllm command is missing beside this Python"
    return [vllm]


def module_command(module: str) -> list[str]:
    """``python -m module``, from the repository's root."""
    own = ["-m", "tests.engine.vllm_command"] if forks() else ["-m"]
    return [sys.executable, *own, module]


def fork() -> None:
    """Before vLLM starts any process in this one."""
    get_context = multiprocessing.get_context

    def forking(method: str | None = None) -> BaseContext:
        return get_context("fork" if method == "spawn" else method)

    multiprocessing.get_context = forking  # type: ignore[assignment]


if __name__ == "__main__":
    fork()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
