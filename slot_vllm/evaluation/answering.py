"""How far the answers of a run are, and how long those take that are not there yet."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from slot_vllm.evaluation.generation import Request
from slot_vllm.evaluation.progress import Progress, time_left


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
        self._since: dict[str, float] = {}  # when a running one had no token
        self._tokens: Counter[str] = Counter()
        self._finished: list[int] = []
        self._clock = clock
        self._started = clock()

    @property
    def running(self) -> int:
        return len(self._since)

    @property
    def tokens_per_second(self) -> float:
        elapsed = self._clock() - self._started
        return self._tokens.total() / elapsed if elapsed else 0.0

    def add(self, request_id: str, tokens: int) -> None:
        """The request runs, and has so many tokens more: 0 when it begins."""
        self._waiting.pop(request_id, None)
        self._since.setdefault(request_id, self._clock())
        self._tokens[request_id] += tokens

    def finish(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)
        self._since.pop(request_id, None)
        self._finished.append(self._tokens[request_id])

    def seconds(self) -> float | None:
        """None as long as no request is finished, or none has a token."""
        rate = self.tokens_per_second
        if not (self._finished and rate):
            return None
        finished, now = np.array(self._finished), self._clock()
        mean = finished.mean()
        tokens = sum(min(mean, limit) for limit in self._waiting.values())
        slowest = 0.0
        for request_id, since in self._since.items():
            limit, has = self._limits[request_id], self._tokens[request_id]
            longer = finished[finished > has]
            expected = min(longer.mean(), limit) if len(longer) else limit
            left = max(expected - has, 0)
            tokens += left
            slowest = max(slowest, left * (now - since) / has if has else 0)
        return max(tokens / rate, slowest)


class Answering(Progress):
    """How many requests are finished and how many run, tokens per second, and the time left.
    done: how many were answered before."""

    def __init__(self, label: str, requests: Sequence[Request], done: int = 0) -> None:
        limits = {one.id: one.sampling["n"] * one.sampling["max_tokens"] for one in requests}
        self._left = TimeLeft(limits)
        super().__init__(label, done + len(requests), done)

    def add_tokens(self, request_id: str, count: int) -> None:
        """The engine's ``OnTokens``."""
        self._left.add(request_id, count)
        self.show()

    def finish(self, request_id: str) -> None:
        self._left.finish(request_id)
        self.reach(self._work.completed + 1)

    def _say(self) -> str:
        said = f"{self._work.completed:.0f}/{self._work.total:.0f} finished"
        rate = f"{self._left.tokens_per_second:.0f} tok/s"
        if self._work.finished:
            return f"{said}, {rate}"
        return f"{said}, {self._left.running} running, {rate}, {time_left(self._left.seconds())}"
