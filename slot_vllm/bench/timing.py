"""Wall-clock and processor seconds, alternating among what is compared."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The smallest of some rounds. seconds: on the clock. cpu_seconds: of all threads together,
    which others on the machine disturb less; threads that wait may spin, which counts, but not
    under OMP_WAIT_POLICY=passive. result: of the last call."""

    seconds: float
    cpu_seconds: float
    result: Any


def fastest(
    functions: Mapping[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, Timing]:
    """Each function's smallest times over ``rounds`` rounds, one call of each per round, so that a
    disturbance of the machine meets all of them alike. The first calls count: warm up before."""
    timings = dict.fromkeys(functions, Timing(float("inf"), float("inf"), None))
    for _ in range(rounds):
        for name, function in functions.items():
            _wait(device)
            began, cpu_began = time.perf_counter(), time.process_time()
            result = function()
            _wait(device)
            timings[name] = Timing(
                min(timings[name].seconds, time.perf_counter() - began),
                min(timings[name].cpu_seconds, time.process_time() - cpu_began),
                result,
            )
    return timings


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
