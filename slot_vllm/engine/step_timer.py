"""How long engine steps are held up by learning."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slot_vllm.engine.histogram import Histogram, HistogramSnapshot

# Seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class StepTimer:
    """A histogram of seconds; on CUDA the device's, taken by events that nothing waits for, so
    that steps still under way are not in it yet."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._histogram = Histogram(BOUNDS)
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times its block, whether or not it raises."""
        if not self._cuda:
            began = time.perf_counter()
            try:
                yield
            finally:
                self._histogram.observe(time.perf_counter() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        try:
            yield
        finally:
            end.record()
            self._running.append((begin, end))
            self._collect()

    def snapshot(self) -> HistogramSnapshot:
        self._collect()
        return self._histogram.snapshot()

    def _collect(self) -> None:
        while self._running and self._running[0][1].query():
            begin, end = self._running.popleft()
            self._histogram.observe(begin.elapsed_time(end) / 1000)
