"""What a run waits for before its first answer: each phase is said as it begins, and as it ends,
with its seconds."""

import logging
import threading
import time
from typing import Self

logger = logging.getLogger(__name__)

# What vLLM prints when a phase of its start begins. Each counts once: several workers print it.
_BEGINS = {
    "Starting to load model": "loading the weights",
    "Loading model from scratch": "loading the weights",
    "Loading weights took": "warming up",
    "Warming up model for the compilation": "compiling",
    "Starting torch.compile": "compiling",
    "torch.compile took": "warming up",
}


class Phases:
    """While entered, ``see`` takes what vLLM prints. A release that prints something else has fewer
    phases, or one.

    first: the phase that begins as it is entered.
    """

    def __init__(self, first: str) -> None:
        self._phase = first
        self._unseen = dict(_BEGINS)
        self._since = time.monotonic()
        self._ended = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with self._lock:
            self._begin(self._phase)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        with self._lock:
            self._ended = True
            if error is None:
                self._end()

    def see(self, line: str) -> None:
        """Takes a line that vLLM printed, from any thread."""
        mark = next((mark for mark in self._unseen if mark in line), None)
        if mark is None:
            return
        phase = self._unseen.pop(mark)
        with self._lock:
            if phase != self._phase and not self._ended:
                self._end()
                self._begin(phase)

    def _begin(self, phase: str) -> None:
        self._phase, self._since = phase, time.monotonic()
        logger.info("%s ...", phase)

    def _end(self) -> None:
        logger.info("%s: %.1f s", self._phase, time.monotonic() - self._since)
