"""What SLOT costs a server end to end, measured by ``vllm bench serve``.

    python scripts/bench_serve.py RUN.yaml [--set key=value ...] --output FILE
        [--at-once 128] [--requests 128] [--new-tokens 250] [--rounds 2]

Model, engine options, prompts and arms are those of a run's file. One ``vllm serve`` answers the
same prompts for every arm in rounds, the odd ones in reverse, each with an empty prefix cache; all
answers have exactly ``--new-tokens`` tokens. Of each arm: requests per second, time to first token,
seconds of learning; and the loss of requests per second to the baseline in the same round.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lighteval.models.abstract_model import ModelConfig

from slot_vllm.bench.machine import describe_machine
from slot_vllm.engine.frontend.cached_rpc import FRESH_SECONDS
from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig, load
from slot_vllm.evaluation.generation import engine_options
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.record import BASELINE, Arm

START_SECONDS = 600
# Of vllm bench serve's result, milliseconds where they are times.
_COUNTED = ("completed", "total_output_tokens")
_MEASURED = ("duration", "request_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms")
_VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", nargs="+", default=[], dest="settings")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--at-once", type=int, default=128, help="requests that run together")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    config = load(options.config, options.settings)
    machine = describe_machine("cpu")
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text(
            "".join(json.dumps({"prompt": text}) + "\n" for text in _prompts(config, options))
        )
        with _server(config, Path(folder) / "server.log") as url:
            for arm in config.all_arms:  # warm
                _measure(url, arm, prompts, options, requests=2)
            for number in range(options.rounds):
                # What drifts over time favours no arm.
                for arm in config.all_arms[:: -1 if number % 2 else 1]:
                    found = _measure(url, arm, prompts, options)
                    rounds.append({"round": number, "arm": arm.name, **found})
                    print(json.dumps(rounds[-1]), flush=True)
    result = {
        "benchmark": "bench_serve",
        "config": str(options.config),
        "model": config.model,
        "machine": machine,
        "at_once": options.at_once,
        "requests": options.requests,
        "new_tokens": options.new_tokens,
        "rounds": rounds,
        "arms": {arm.name: _summary(arm.name, rounds) for arm in config.all_arms},
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in result["arms"].items():
        print(name, json.dumps(values))


def _prompts(config: RunConfig, options: argparse.Namespace) -> list[str]:
    """As the model is asked them, special tokens and all."""
    (task,) = tasks.load(config)
    model = SlotModel(ModelConfig(model_name=config.model), config)
    return [model.prompt(doc) for doc in task.docs[: options.requests]]


@contextmanager
def _server(config: RunConfig, log: Path) -> Iterator[str]:
    """Its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    chosen = engine_options(config)
    model = chosen.pop("model")
    # Every round learns its own deltas.
    chosen["additional_config"]["slot"]["delta_cache_mb"] = 0
    flags = [f"--host=127.0.0.1 --port={port} --uvicorn-log-level=warning".split()]
    for name in ("use_tqdm_on_load", "worker_extension_cls"):
        chosen.pop(name)
    flags += [_flag(name, value) for name, value in chosen.items()]
    command = [*_VLLM, "serve", str(model), "--worker-extension-cls=slot_vllm.SlotWorkerExtension"]
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
        "VLLM_PLUGINS": "slot_vllm,slot_stats",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *(part for flag in flags for part in flag)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(START_SECONDS):
        try:
            urllib.request.urlopen(f"{url}/health").close()
            return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                break
            time.sleep(1)
    raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")


def _measure(
    url: str,
    arm: Arm,
    prompts: Path,
    options: argparse.Namespace,
    requests: int | None = None,
) -> dict[str, Any]:
    count = requests or options.requests
    # HTTP requests cannot say null.
    asked = {key: value for key, value in arm.request_args().items() if value is not None}
    urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST"))
    before = _learning_seconds(url)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *_VLLM,
                *("bench", "serve", "--backend=openai", f"--base-url={url}"),
                *("--dataset-name=custom", f"--dataset-path={prompts}", "--disable-shuffle"),
                *("--skip-chat-template", f"--custom-output-len={options.new_tokens}"),
                *(
                    "--ignore-eos",
                    "--temperature=0",
                    f"--num-prompts={count}",
                ),
                *(f"--max-concurrency={options.at_once}", "--disable-tqdm"),
                *("--extra-body", json.dumps({"vllm_xargs": asked})),
                *("--save-result", f"--result-dir={folder}", "--result-filename=result.json"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        result = json.loads((Path(folder) / "result.json").read_text())
    made = {name: result[name] for name in _COUNTED}
    if list(made.values()) != [count, count * options.new_tokens]:
        raise SystemExit(f"{arm.name}: {count} requests and other numbers of tokens: {made}")
    time.sleep(FRESH_SECONDS)  # the server gives a younger answer again
    learned = _learning_seconds(url) - before
    times = {name: result[name] for name in _MEASURED}
    return {**made, **times, "learning_seconds": round(learned, 6)}


def _learning_seconds(url: str) -> float:
    with urllib.request.urlopen(f"{url}/slot/stats") as answer:
        return max(worker["optimize_seconds"] for worker in json.load(answer)["workers"])


def _summary(name: str, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    own = [one for one in rounds if one["arm"] == name]
    plain = [one for one in rounds if one["arm"] == BASELINE]
    losses = [
        1 - one["request_throughput"] / other["request_throughput"]
        for one, other in zip(own, plain, strict=True)
    ]
    keys = (*_MEASURED, "learning_seconds")
    return {key: round(statistics.median(one[key] for one in own), 4) for key in keys} | {
        "loss": round(statistics.median(losses), 4)
    }


if __name__ == "__main__":
    main()
