"""However many ask for however many receipts, the engine is asked once at a time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from slot_vllm.engine.frontend import batched_rpc
from slot_vllm.engine.frontend.batched_rpc import MOST_NAMES, PAUSE_SECONDS, BatchedRpc


class Engine:
    """Answers, once ``free``, with the names in capitals."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.free = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, names: list[str]) -> dict[str, str]:
        self.calls.append(names)
        await self.free.wait()
        if self.error:
            raise self.error
        return {name: name.upper() for name in names}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept, by a clock that only sleeping moves."""
    slept: list[float] = []
    now = [1000.0]
    sleep: Callable[[float], Any] = asyncio.sleep

    async def pause(seconds: float) -> None:
        if seconds > 0:
            slept.append(seconds)
            now[0] += seconds
        await sleep(0)

    monkeypatch.setattr(batched_rpc, "monotonic", lambda: now[0])
    monkeypatch.setattr(asyncio, "sleep", pause)
    return slept


def test_those_who_ask_meanwhile_share_the_next_question(pauses: list[float]) -> None:
    async def check() -> None:
        engine = Engine()
        asked = BatchedRpc(engine.ask)
        first = asyncio.ensure_future(asked.answer("a"))
        while not engine.calls:
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(asked.answer(name)) for name in "bcbb"]
        await asyncio.sleep(0)
        # One of those who wait goes away; the others get the answer.
        waiting.pop(0).cancel()
        await asyncio.sleep(0)
        assert engine.calls == [["a"]]
        engine.free.set()
        assert await first == "A"
        assert await asyncio.gather(*waiting) == ["C", "B", "B"]
        assert engine.calls == [["a"], ["c", "b"]]
        assert pauses == [pytest.approx(PAUSE_SECONDS)]
        many = [f"n{i}" for i in range(MOST_NAMES + 1)]
        assert await asyncio.gather(*map(asked.answer, many)) == [n.upper() for n in many]
        assert [len(call) for call in engine.calls[2:]] == [MOST_NAMES, 1]
        assert len(pauses) == 3

    asyncio.run(check())


def test_an_engine_that_does_not_answer_is_asked_once(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched_rpc, "ANSWER_SECONDS", 0.01)

    async def check() -> None:
        engine = Engine()
        asked = BatchedRpc(engine.ask)
        for name in "abc":
            with pytest.raises(TimeoutError):
                await asked.answer(name)
        assert engine.calls == [["a"]] and not asked._waiting
        engine.free.set()
        assert await asked.answer("d") == "D"

    asyncio.run(check())


def test_who_asks_gets_the_error(pauses: list[float]) -> None:
    async def check() -> None:
        engine = Engine()
        asked = BatchedRpc(engine.ask)
        engine.free.set()
        engine.error = RuntimeError("gone")
        for _ in range(2):
            with pytest.raises(RuntimeError, match="gone"):
                await asked.answer("a")
        engine.error = None
        assert await asked.answer("a") == "A"

    asyncio.run(check())
