"""How long engine steps are held up by learning."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slot_vllm.engine.wire.histogram import Histogram, HistogramSnapshot

# Seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class StepTime:
    """Of one step, in which ``prompts`` were learned from. seconds: None until they are known."""

    def __init__(self, prompts: int, events: tuple[torch.cuda.Event, torch.cuda.Event] | None):
        self.prompts = prompts
        self._events = events
        self._seconds: float | None = None

    def end(self, seconds: float) -> None:
        self._seconds = seconds

    @property
    def seconds(self) -> float | None:
        if self._events is not None and self._events[1].query():
            begin, end = self._events
            self._seconds, self._events = begin.elapsed_time(end) / 1000, None
        return self._seconds


class StepTimer:
    """A histogram of seconds; on CUDA the device's, taken by events that nothing waits for, so
    that steps still under way are not in it yet."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._histogram = Histogram(BOUNDS)
        self._running: deque[StepTime] = deque()

    @contextmanager
    def step(self, prompts: int = 1) -> Iterator[StepTime]:
        """Times its block, whether or not it raises."""
        if not self._cuda:
            began, own = time.perf_counter(), StepTime(prompts, None)
            try:
                yield own
            finally:
                own.end(time.perf_counter() - began)
                self._histogram.observe(own.seconds or 0.0)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        own = StepTime(prompts, (begin, end))
        try:
            yield own
        finally:
            end.record()
            self._running.append(own)
            self._collect()

    def snapshot(self) -> HistogramSnapshot:
        self._collect()
        return self._histogram.snapshot()

    def _collect(self) -> None:
        while self._running and (seconds := self._running[0].seconds) is not None:
            self._running.popleft()
            self._histogram.observe(seconds)
