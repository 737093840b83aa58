"""Faults while others are served: the server stays healthy, and the others get what they would get
alone (a transformers reference)."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from slot_vllm.engine.frontend.cached_rpc import FRESH_SECONDS
from tests.engine.cases import Case, assert_tokens_equal, random_tokens, reference
from tests.engine.server import Server, ask, ask_all, body, serving
from tests.engine.serving.conftest import BYSTANDERS, LONGEST, OPTIONS
from tests.engine.serving.faulty import POISONED_LR

ABORTS = 120
# Seconds, of a client whose server was told to stop.
PATIENCE = 5


@pytest.fixture(autouse=True)
def healthy_and_empty_afterwards(server: Server) -> Iterator[None]:
    yield
    client = server.client
    assert client.models.list().data
    # One more step tells the worker who has left.
    asyncio.run(ask_all(server, [Case(random_tokens(4, seed=1), 0, 0.1, 1)] * 2, 1))
    deadline = time.monotonic() + 60
    while (stats := server.stats())["requests"]:
        assert time.monotonic() < deadline, stats
        asyncio.run(ask_all(server, [Case(random_tokens(4, seed=1), 0, 0.1, 1)], 1))
    assert stats["table_rows"] == 0
    assert stats["pending_device_bytes"] == stats["pending_host_bytes"] == 0


@contextmanager
def _fault(server: Server, name: str, switch: str = "on") -> Iterator[None]:
    server.rpc(name, switch)
    try:
        yield
    finally:
        server.rpc(name, "off")


def _fallbacks(server: Server, reason: str) -> float:
    # Not what an earlier scrape was told.
    time.sleep(FRESH_SECONDS)
    return server.metric("vllm:slot_fallbacks_total", outcome="failed", reason=reason)


def test_clients_that_disconnect(tiny_model: str, server: Server) -> None:
    async def leave(client: openai.AsyncOpenAI, i: int) -> bool:
        """Whether the stream was left before its request finished, as far as it was read."""
        length = 60 + i % 200
        case = Case(random_tokens(length, seed=6500 + i), 5, 0.1, 319 - length)
        # It is there before the request is looked at.
        stream = await client.completions.create(**body(case), stream=True)
        finished, received = False, 0
        # A third leaves from the queue or within the prompt, the others within the stream.
        if i % 3 == 0:
            await asyncio.sleep(0.1 * (i % 30))
        else:
            async for chunk in stream:
                received += 1
                finished = any(choice.finish_reason for choice in chunk.choices)
                if finished or received == i % 7 + 1:
                    break
        await stream.close()
        return not finished

    def finished() -> float:
        """Requests that ended other than by being aborted."""
        name = "vllm:request_success_total"
        return server.metric(name) - server.metric(name, finished_reason="abort")

    async def everything() -> tuple[list[bool], int]:
        async with server.asynchronous() as client, server.asynchronous() as other:
            free = asyncio.Semaphore(12)

            async def limited(i: int) -> bool:
                async with free:
                    return await leave(client, i)

            leaving = asyncio.gather(*(limited(i) for i in range(ABORTS)))
            bystanders = 0
            while not leaving.done():
                answers = await asyncio.gather(*(ask(other, case) for case in BYSTANDERS))
                assert_tokens_equal(answers, expected)
                bystanders += len(answers)
            return await leaving, bystanders

    expected = reference(tiny_model, BYSTANDERS)
    before = finished()
    with _fault(server, "slow", "0.05"):
        left, bystanders = asyncio.run(everything())
    # The others still run, and the worker is told who has left.
    assert_tokens_equal(asyncio.run(ask_all(server, BYSTANDERS, 4)), expected)
    bystanders += len(BYSTANDERS)
    assert sum(left) >= 100 and bystanders > len(BYSTANDERS)
    # Those that were left did not run to their end.
    assert finished() - before <= bystanders + ABORTS - sum(left)


def test_a_client_that_disconnects_within_its_prompt(tiny_model: str, server: Server) -> None:
    async def leave() -> None:
        async with server.asynchronous() as client:
            # Three steps.
            case = Case(random_tokens(LONGEST, seed=6600), 5, 0.1, 8)
            stream = await client.completions.create(**body(case), stream=True)
            while not server.stats()["requests"]:
                await asyncio.sleep(0.05)
            await stream.close()

    # The worker forgets those before.
    asyncio.run(ask_all(server, [Case(random_tokens(4, seed=1), 0, 0.1, 1)] * 2, 1))
    before = server.stats()
    assert not before["requests"]
    with _fault(server, "slow", "1"):
        asyncio.run(leave())
    assert_tokens_equal(
        asyncio.run(ask_all(server, BYSTANDERS, 4)), reference(tiny_model, BYSTANDERS)
    )
    assert server.stats()["aborted"] == before["aborted"] + 1


def test_an_exception_in_the_optimizer(tiny_model: str, server: Server) -> None:
    failed = server.stats()["failed"]
    without = [Case(c.tokens, 0, c.lr, c.new_tokens) for c in BYSTANDERS]
    counted = _fallbacks(server, "optimizer")
    server.rpc("slot_forget_shared")
    with _fault(server, "break_optimizer"):
        got = asyncio.run(ask_all(server, BYSTANDERS, 4))
    assert_tokens_equal(got, reference(tiny_model, without))
    stats = server.stats()
    assert stats["failed"] == failed + 3
    assert _fallbacks(server, "optimizer") == counted + 3
    (errors,) = server.rpc("slot_errors")
    assert "injected into the optimizer" in errors[-1]
    assert_tokens_equal(
        asyncio.run(ask_all(server, BYSTANDERS, 4)), reference(tiny_model, BYSTANDERS)
    )


def test_hidden_states_that_are_not_numbers(tiny_model: str, server: Server) -> None:
    failed = server.stats()["failed"]
    victim = Case(random_tokens(40, seed=6700), 5, POISONED_LR, 24)
    cases = [*BYSTANDERS, victim]
    counted = _fallbacks(server, "non_finite")
    server.rpc("slot_forget_shared")
    with _fault(server, "poison"):
        got = asyncio.run(ask_all(server, cases, 5))
    spared = Case(victim.tokens, 0, victim.lr, victim.new_tokens)
    assert_tokens_equal(got, reference(tiny_model, [*BYSTANDERS, spared]))
    assert server.stats()["failed"] == failed + 1
    assert _fallbacks(server, "non_finite") == counted + 1
    # The same prompt later: nothing of the fault was kept for it.
    assert_tokens_equal(asyncio.run(ask_all(server, [victim], 1)), reference(tiny_model, [victim]))


def test_a_burst_that_does_not_fit_the_kv_cache(tiny_model: str, server: Server) -> None:
    cases = [Case(random_tokens(150, seed=6800 + i), 5 * (i % 2), 0.3, 100) for i in range(12)]
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")

    async def burst() -> list[Any]:
        # None has finished before all have come, however long that takes.
        with _fault(server, "slow", "0.5"):
            asked = asyncio.ensure_future(ask_all(server, cases, len(cases)))
            while sum(map(server.metric, gauges)) < len(cases) and not asked.done():
                await asyncio.sleep(0.1)
        return await asked

    before = server.metric("vllm:num_preemptions_total")
    got = asyncio.run(burst())
    assert server.metric("vllm:num_preemptions_total") > before
    assert_tokens_equal(got, reference(tiny_model, cases))


# vLLM's default is to end at once.
@pytest.mark.parametrize("drain", [("--shutdown-timeout", "300"), ()], ids=["drain", "default"])
def test_a_second_server_that_is_told_to_stop(
    drain: tuple[str, ...], tiny_model: str, server: Server, tmp_path: Path
) -> None:
    expected = reference(tiny_model, BYSTANDERS)
    long = [Case(random_tokens(50, seed=6900 + i), 5, 0.1, 80) for i in range(8)]

    async def answer(client: openai.AsyncOpenAI, case: Case) -> list[int]:
        """The tokens for ``case``; none, if it was aborted. By default, whose requests must be
        running when the server is told to stop, it asks until then."""
        while True:
            choice = (await client.completions.create(**body(case))).choices[0]
            if drain:
                return list(choice.token_ids)
            if choice.finish_reason == "abort":
                return []
            assert choice.finish_reason == "length", choice.finish_reason

    async def stop_while_they_run(second: Server) -> list[Any]:
        async with second.asynchronous() as client:
            deadline = time.monotonic() + 60
            names = ("num_requests_running", "num_requests_waiting", "request_success_total")
            running: list[asyncio.Future[Any]] = []
            # A busy machine may see them only when they are done, and then they are asked again.
            while all(request.done() for request in running):
                before = second.metric("vllm:request_success_total")
                running = [asyncio.ensure_future(answer(client, case)) for case in long]
                while sum(second.metric(f"vllm:{name}") for name in names) - before < len(long):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
            second.process.send_signal(signal.SIGTERM)
            if not drain:
                # vLLM may end its engine before the last outputs are out, and then waits for its
                # clients to leave: docs/reliability.md.
                await asyncio.wait(running, timeout=PATIENCE)
                for request in running:
                    request.cancel()
            return await asyncio.gather(*running, return_exceptions=not drain)

    # As a user starts and stops it.
    with serving(tiny_model, {}, tmp_path / "log", *OPTIONS, *drain, forked=False) as second:
        for one in (server, second):
            assert_tokens_equal(asyncio.run(ask_all(one, BYSTANDERS, 4)), expected)
        processes = psutil.Process(second.process.pid).children(recursive=True)
        answers = asyncio.run(stop_while_they_run(second))
        if drain:
            assert_tokens_equal(answers, reference(tiny_model, long))
        else:
            for end in answers:
                assert end == [] or isinstance(end, openai.OpenAIError | asyncio.CancelledError)
        second.process.wait(60)
        assert second.ended_well(), second.said()[-3000:]
        _, left = psutil.wait_procs(processes, timeout=60)
        assert not left
        # vLLM itself logs the end of its engine process as an error.
        ending = second.said().partition("shutdown triggered")[2]
        assert ending and "/slot_vllm/" not in ending, ending
    assert_tokens_equal(asyncio.run(ask_all(server, BYSTANDERS, 4)), expected)
