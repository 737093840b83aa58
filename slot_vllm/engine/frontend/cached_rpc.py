"""One RPC at a time, whose answer all who ask get.

``/metrics`` and ``/slot/stats`` are open to whoever reaches the server, and each answer costs the
engine a pause between two steps.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")

# Below Prometheus' default scrape timeout of 10 s, so that vLLM's own metrics still arrive.
ANSWER_SECONDS = 5.0
FRESH_SECONDS = 1.0


class CachedRpc(Generic[T]):
    """Those who ask while a call is under way wait for its answer, and an answer or error younger
    than FRESH_SECONDS is given again. A call without an answer stays the only one."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._asked: asyncio.Task[T] | None = None
        self._answered = 0.0

    async def answer(self) -> T:
        """Raises what the call raises, and TimeoutError after ANSWER_SECONDS without an answer."""
        old = monotonic() - self._answered >= FRESH_SECONDS
        if self._asked is None or (self._asked.done() and old):
            self._asked = asyncio.create_task(self._ask())
        return await asyncio.wait_for(asyncio.shield(self._asked), ANSWER_SECONDS)

    async def _ask(self) -> T:
        try:
            return await self._call()
        finally:
            self._answered = monotonic()
