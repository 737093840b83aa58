"""However many ask, the engine is asked once at a time."""

import asyncio

import pytest

from slot_vllm.engine.frontend import cached_rpc
from slot_vllm.engine.frontend.cached_rpc import CachedRpc


class Engine:
    """Answers, once ``free``, with the number of the call."""

    def __init__(self) -> None:
        self.calls = 0
        self.free = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self) -> int:
        self.calls += 1
        call = self.calls
        await self.free.wait()
        if self.error:
            raise self.error
        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one item is the time."""
    now = [1000.0]
    monkeypatch.setattr(cached_rpc, "monotonic", lambda: now[0])
    return now


def test_an_answer_is_shared_until_it_is_old(clock: list[float]) -> None:
    async def check() -> None:
        engine = Engine()
        asked = CachedRpc(engine.ask)
        waiting = [asyncio.ensure_future(asked.answer()) for _ in range(20)]
        await asyncio.sleep(0)
        # One of those who wait goes away; the others get the answer.
        waiting.pop().cancel()
        await asyncio.sleep(0)
        engine.free.set()
        assert await asyncio.gather(*waiting) == [1] * 19
        clock[0] += 0.9
        assert await asked.answer() == 1
        clock[0] += 0.2
        assert await asyncio.gather(*(asked.answer() for _ in range(5))) == [2] * 5

    asyncio.run(check())


def test_an_engine_that_does_not_answer_is_asked_once(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_rpc, "ANSWER_SECONDS", 0.01)

    async def check() -> None:
        engine = Engine()
        asked = CachedRpc(engine.ask)
        for _ in range(5):
            clock[0] += 100
            with pytest.raises(TimeoutError):
                await asked.answer()
        assert engine.calls == 1
        # Its late answer is one.
        engine.free.set()
        assert await asked.answer() == 1

    asyncio.run(check())


def test_an_error_is_an_answer(clock: list[float]) -> None:
    async def check() -> None:
        engine = Engine()
        engine.free.set()
        engine.error = RuntimeError("dead")
        asked = CachedRpc(engine.ask)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="dead"):
                await asked.answer()
        assert engine.calls == 1
        clock[0] += 2
        engine.error = None
        assert await asked.answer() == 2

    asyncio.run(check())
