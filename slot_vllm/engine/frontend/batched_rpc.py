"""One RPC at a time, about all that was asked for meanwhile.

As with ``cached_rpc``, strangers may ask, and each call costs the engine a pause between steps.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

from slot_vllm.engine.frontend.cached_rpc import ANSWER_SECONDS

T = TypeVar("T")

# Between an answer and the next question.
PAUSE_SECONDS = 0.1
MOST_NAMES = 64


class BatchedRpc(Generic[T]):
    """call: gives the answers to at most ``MOST_NAMES`` names, by name. Between two calls it is
    quiet for ``PAUSE_SECONDS``; a call without an answer stays the only one."""

    def __init__(self, call: Callable[[list[str]], Awaitable[dict[str, T]]]) -> None:
        self._call = call
        # Who has not been asked for yet, in their order.
        self._waiting: dict[asyncio.Future[T], str] = {}
        self._asking: asyncio.Task[None] | None = None
        self._next = 0.0

    async def answer(self, name: str) -> T:
        """Raises what the call raises, and TimeoutError after ANSWER_SECONDS without an answer."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[future] = name
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        finally:
            self._waiting.pop(future, None)

    async def _ask(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._next - monotonic())
            names = list(dict.fromkeys(self._waiting.values()))[:MOST_NAMES]
            asked = {future: name for future, name in self._waiting.items() if name in names}
            for future in asked:
                del self._waiting[future]
            if asked:
                await self._put(names, asked)

    async def _put(self, names: list[str], asked: dict[asyncio.Future[T], str]) -> None:
        try:
            answers = await self._call(names)
            for future, name in asked.items():
                # Who waited may be gone.
                if not future.done():
                    future.set_result(answers[name])
        except Exception as error:
            for future in asked:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._next = monotonic() + PAUSE_SECONDS
