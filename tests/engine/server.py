"""A real ``vllm serve``, started as a user would."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

START_SECONDS = 240
STOP_SECONDS = 30
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


@contextmanager
def serving(
    model: str, slot: dict[str, Any] | None, log: Path, *options: str, **environment: str
) -> Iterator[Server]:
    """A healthy server on a free port; with ``slot`` None, without SLOT. It is stopped with
    SIGTERM, unless it ended before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent))
    assert vllm, "the vllm command is missing beside this Python"
    command = [
        vllm, "serve", model, "--served-model-name", MODEL, "--host", "127.0.0.1",
        "--port", str(port), "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 26), *options,
    ]  # fmt: skip
    if slot is not None:
        settings = json.dumps({"slot": {"workspace_mb": 16, **slot}})
        command += ["--worker-extension", "slot_vllm", "--additional-config", settings]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            # The default of a server is an engine process of its own.
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment},
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
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


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
