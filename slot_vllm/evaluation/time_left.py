"""How long requests take that are not answered yet."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass
class _Running:
    """tokens: that it has. since: when it had none, in seconds of the clock."""

    tokens: int
    since: float


class TimeLeft:
    """limits: of each request, by its id, how many tokens its answers may have.

    The time left is that of the tokens left, at the tokens per second so far; or, if it is longer,
    that of the running request which takes longest at its own pace, for the last ones have the
    engine to themselves. A request that waits is expected to have the mean of those that are
    finished; a running one the mean of the finished ones that are longer than it is now or, where
    none is, its limit. None is expected to have more than its limit.
    """

    def __init__(
        self, limits: Mapping[str, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waiting = dict(limits)
        self._limits = limits
        self._running: dict[str, _Running] = {}
        self._finished: list[int] = []
        self._tokens = 0
        self._clock = clock
        self._started = clock()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def finished(self) -> int:
        return len(self._finished)

    @property
    def tokens_per_second(self) -> float:
        elapsed = self._clock() - self._started
        return self._tokens / elapsed if elapsed else 0.0

    def add(self, request_id: str, tokens: int) -> None:
        """The request runs, and has so many tokens more: 0 when it begins."""
        self._waiting.pop(request_id, None)
        one = self._running.setdefault(request_id, _Running(0, self._clock()))
        one.tokens += tokens
        self._tokens += tokens

    def finish(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        one = self._running.pop(request_id, None)
        self._finished.append(one.tokens if one else 0)

    def seconds(self) -> float | None:
        """None as long as no request is finished, or none has a token."""
        rate = self.tokens_per_second
        if not (self._finished and rate):
            return None
        finished, now = np.array(self._finished), self._clock()
        mean = finished.mean()
        tokens = sum(min(mean, limit) for limit in self._waiting.values())
        slowest = 0.0
        for request_id, one in self._running.items():
            limit, longer = self._limits[request_id], finished[finished > one.tokens]
            expected = min(longer.mean(), limit) if len(longer) else limit
            left = max(expected - one.tokens, 0)
            tokens += left
            slowest = max(slowest, left * (now - one.since) / one.tokens if one.tokens else 0)
        return max(tokens / rate, slowest)
