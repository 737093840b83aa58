"""What is kept of the requests that finished last."""

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")


class LastFinished(Generic[T]):
    """One value per request, of ``limit`` requests at most, the oldest going first; and of none
    that finished more than ``seconds`` ago by ``clock``."""

    def __init__(
        self, limit: int, seconds: float = inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._entries: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        self._forget()
        return len(self._entries)

    def put(self, req_id: str, value: T) -> None:
        if self._limit:
            # An id that is used again is another request's.
            self._entries.pop(req_id, None)
            self._entries[req_id] = (self._clock(), value)
            self._forget()

    def values(self) -> list[T]:
        """The newest last."""
        self._forget()
        return [value for _, value in self._entries.values()]

    def _forget(self) -> None:
        now = self._clock()
        while self._entries:
            when, _ = next(iter(self._entries.values()))
            if len(self._entries) <= self._limit and now - when <= self._seconds:
                return
            self._entries.popitem(last=False)
