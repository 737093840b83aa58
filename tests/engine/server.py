"""A real ``vllm serve``."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.cases import Case
from tests.engine.runner import python_path
from tests.engine.vllm_command import vllm_command

START_SECONDS = 600
STOP_SECONDS = 10
MODEL = "tiny"


@dataclass(frozen=True)
class Server:
    """url: without a path. client: asks ``url``, without retries, for the model ``MODEL``."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: openai.OpenAI

    def said(self) -> str:
        return self.log.read_text()

    def alive(self) -> bool:
        return self.process.poll() is None

    def ended_well(self) -> bool:
        """Of a process that ended. As its last act vLLM looks who else has its port; if that is its
        own worker, which it has just killed, psutil raises, and the exit status is 1."""
        return self.process.returncode == 0 or bool(
            re.search(r"in serve_http[\s\S]*psutil\.(Zombie|NoSuch)Process: ", self.said())
        )

    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key="none",
            max_retries=0,
            timeout=300,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    def rpc(self, method: str, *args: str) -> list[Any]:
        """One result per worker. The server must have VLLM_SERVER_DEV_MODE=1."""
        answer = httpx.post(
            f"{self.url}/collective_rpc",
            json={"method": method, "args": args},
            timeout=60,
            trust_env=False,
        )
        answer.raise_for_status()
        results: list[Any] = answer.json()["results"]
        return results

    def stats(self) -> dict[str, Any]:
        (stats,) = self.rpc("slot_stats")
        return stats

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric on ``/metrics`` over all samples with these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=60, trust_env=False).text
        families = text_string_to_metric_families(text)
        samples = [s for family in families for s in family.samples if s.name == name]
        values = [s.value for s in samples if labels.items() <= s.labels.items()]
        assert values, (name, labels)
        return sum(values)


@contextmanager
def serving(
    model: str,
    slot: dict[str, Any] | None,
    log: Path,
    *options: str,
    extension: str = "slot_vllm",
    forked: bool = True,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Server]:
    """A healthy server; with ``slot`` None, without SLOT. forked: as in ``vllm_command.py``."""
    command = [
        *vllm_command(forked), "serve", model, "--served-model-name", MODEL, "--host", "127.0.0.1",
        "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 26), *options,
    ]  # fmt: skip
    if slot is not None:
        settings = json.dumps({"slot": {"steps": 5, "workspace_mb": 16, **slot}})
        flag = "--worker-extension-cls" if "." in extension else "--worker-extension"
        command += [flag, extension, "--additional-config", settings]
    with running(command, log, environment) as server:
        yield server


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """The healthy server that ``command`` starts on a free port, as its last option ``--port``. It
    is stopped with Ctrl-C, unless it ended before. Raises AssertionError if that takes too long,
    and says where the processes hang."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        # The default of a server is an engine process of its own.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "PYTHONPATH": python_path(),
        # Else a connection that a client kept is closed after 5 s, perhaps while it asks again.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
        # For ``_stop``.
        "PYTHONFAULTHANDLER": "1",
        **environment,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # A group of processes, as a terminal makes one of a command.
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    # No proxy, whatever the environment says.
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    server = Server(process, url, log, client)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        client.close()
        if server.alive():
            _stop(server)


def _stop(server: Server) -> None:
    """As a terminal does with Ctrl-C: all processes of the group get the signal."""
    process = server.process
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    _, left = psutil.wait_procs(children, STOP_SECONDS)
    failure = None
    if process.returncode is not None and not server.ended_well():
        failure = f"exit status {process.returncode}"
    if server.alive() or left:
        failure = f"after Ctrl-C it did not end within {STOP_SECONDS} s"
        # Python then says what each of its threads does, and ends.
        os.killpg(process.pid, signal.SIGABRT)
        process.wait()
        psutil.wait_procs(left)
    assert failure is None, f"{failure}: {server.said()[-10_000:]}"


def _wait_until_healthy(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.alive(), server.said()[-3000:]
        assert time.monotonic() < deadline, server.said()[-3000:]
        try:
            server.client.models.list()
            return
        except openai.APIConnectionError:
            time.sleep(0.3)


async def ask(client: openai.AsyncOpenAI, case: Case) -> list[int]:
    """The tokens that the server generates for ``case``, greedily."""
    choice = (await client.completions.create(**body(case))).choices[0]
    return list(choice.token_ids)


def body(case: Case, **xargs: Any) -> dict[str, Any]:
    """xargs: further settings."""
    return {
        "model": MODEL,
        "prompt": list(case.tokens),
        "max_tokens": case.new_tokens,
        "temperature": 0,
        "extra_body": {
            "vllm_xargs": {"slot_steps": case.steps, "slot_lr": case.lr, **xargs},
            "ignore_eos": True,
            "return_token_ids": True,
        },
    }


async def ask_all(server: Server, cases: Sequence[Case], concurrency: int) -> list[list[int]]:
    """As ``ask``, ``concurrency`` at a time. Any error of a request is raised."""
    free = asyncio.Semaphore(concurrency)

    async def one(client: openai.AsyncOpenAI, case: Case) -> list[int]:
        async with free:
            return await ask(client, case)

    async with server.asynchronous() as client:
        return await asyncio.gather(*(one(client, case) for case in cases))
