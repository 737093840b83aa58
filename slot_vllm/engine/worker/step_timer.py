"""How long engine steps are held up by learning."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slot_vllm.engine.wire.worker_metrics import HistogramSnapshot
from slot_vllm.engine.worker.histogram import Histogram

# Seconds.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class StepTime:
    """Of one step, in which ``prompts`` were learned from. seconds: on CUDA the device's, else the
    host's; None until they are known."""

    def __init__(self, prompts: int, cuda: bool) -> None:
        self.prompts = prompts
        self._seconds: float | None = None
        self._began = time.perf_counter()
        self._events: list[torch.cuda.Event] = []
        if cuda:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()

    def end(self) -> float:
        """Returns the host's seconds."""
        seconds = time.perf_counter() - self._began
        if self._events:
            self._events[1].record()
        else:
            self._seconds = seconds
        return seconds

    @property
    def seconds(self) -> float | None:
        if self._events and self._events[1].query():
            begin, end = self._events
            # A receipt may keep this for long, and needs no events for it.
            self._seconds, self._events = begin.elapsed_time(end) / 1000, []
        return self._seconds


class StepTimer:
    """A histogram of seconds; on CUDA taken by events that nothing waits for, so that steps still
    under way are not in it yet. host_seconds: of all steps together."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._histogram = Histogram(BOUNDS, torch.device("cpu"))
        self._running: deque[StepTime] = deque()
        self.host_seconds = 0.0

    @contextmanager
    def step(self, prompts: int = 1) -> Iterator[StepTime]:
        """Times its block, whether or not it raises."""
        own = StepTime(prompts, self._cuda)
        try:
            yield own
        finally:
            self.host_seconds += own.end()
            self._running.append(own)

    def collect(self) -> None:
        """Takes the steps whose time is known by now into the histogram."""
        while self._running and (seconds := self._running[0].seconds) is not None:
            self._running.popleft()
            # vLLM's default device is the model's.
            self._histogram.observe(torch.tensor([seconds], dtype=torch.float64, device="cpu"))

    def snapshot(self) -> HistogramSnapshot:
        self.collect()
        return self._histogram.snapshot()
