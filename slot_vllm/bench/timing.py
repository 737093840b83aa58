"""Wall-clock seconds, alternating among what is compared."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def fastest(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, float]:
    """Each function's smallest time in seconds over ``rounds`` rounds, one call of each per round.

    A disturbance of the machine then meets all of them alike. Each is called once before, untimed.
    """
    seconds = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            _wait(device)
            began = time.perf_counter()
            function()
            _wait(device)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
