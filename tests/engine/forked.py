"""Work in a process forked from this one, which has imported vLLM: that takes the longer time."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_forked(said: Path, work: Callable[..., None], *arguments: Any) -> int:
    """Its exit code, below zero of a signal. said: the file that gets what it writes."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_work, args=(said, work, arguments))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _work(said: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with said.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    work(*arguments)
