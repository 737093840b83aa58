"""``burst``: what running requests wait while a burst of long prompts arrives.

Real shapes, dummy weights, random tokens, an engine per arm in this process: without SLOT, with
SLOT, and with SLOT and ``max_concurrent``. The arms take turns in alternating rounds of equal
requests; other requests in every round. The engines have vLLM's own defaults.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from slot_vllm.bench.command_line import add_result_flags, give, positive, say
from slot_vllm.bench.machine import describe_machine
from slot_vllm.params import SlotParams

SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
# What changes vLLM's processes and threads, and our kernels.
_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "SLOT_CPU_KERNELS",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_USE_V2_MODEL_RUNNER",
)
# None: without the plugin.
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "slot": {},
    "max_concurrent 2": {"max_concurrent": 2},
    "max_concurrent 1": {"max_concurrent": 1},
}
# By flag: the default, and what it is.
_SETTINGS = {
    "running": (8, "requests that run"),
    "running_tokens": (32, "tokens of their prompts"),
    "window": (32, "their tokens after the burst"),
    "output_tokens": (256, "tokens that any may generate at most"),
    "burst": (8, "prompts of the burst"),
    "burst_tokens": (512, "tokens of each"),
    "steps": (SlotParams().steps, "AdamW steps"),
    "rounds": (5, "rounds after one that warms up"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape", required=True, help="a directory of configs/shapes, or any with a config.json"
    )
    for name, (default, text) in {**_SETTINGS, "kv_cache_mb": (1024, "MiB, each engine")}.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=positive, default=default, help=f"{text} (%(default)s)")
    parser.add_argument(
        "--engine",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="engine arguments of vLLM: max_num_batched_tokens=8192",
    )
    add_result_flags(parser)


def run(options: argparse.Namespace) -> int:
    result = measure(options, _find_shape(options.shape), _engine_arguments(options.engine))
    give(result, _table(result), options)
    return 0


def measure(options: argparse.Namespace, shape: Path, engine: dict[str, Any]) -> dict[str, Any]:
    """The result as it is written to the file. shape: the directory of a config.json. engine:
    arguments of ``vllm.LLM`` beside or instead of ours."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The result alone goes to the standard output.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    import vllm

    from slot_vllm.bench.burst_loop import serve_burst

    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    arguments = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": max(options.running_tokens, options.burst_tokens) + options.output_tokens,
        "max_num_seqs": options.running + options.burst,
        "kv_cache_memory_bytes": options.kv_cache_mb << 20,
        **engine,
    }
    engines = {name: _engine(shape, slot, arguments) for name, slot in ARMS.items()}
    vocabulary = engines["plain"].model_config.get_vocab_size()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for number in range(options.rounds + 1):
        running = _prompts(options.running, options.running_tokens, vocabulary, 2 * number)
        burst = _prompts(options.burst, options.burst_tokens, vocabulary, 2 * number + 1)
        # What drifts must not meet one arm always later than the others.
        for name in ARMS if number % 2 else reversed(ARMS):
            slot = {} if ARMS[name] is None else {"slot_steps": options.steps}
            llm = engines[name]
            before = _optimized(llm, name)
            one = serve_burst(llm, running, burst, options.window, options.output_tokens, slot)
            optimized = _optimized(llm, name) - before
            if optimized != (0 if ARMS[name] is None else options.running + options.burst):
                raise RuntimeError(f"{optimized} prompts were optimized in the arm {name!r}")
            if number:  # the first round warms up
                found[name].append(one)
            say(f"round {number} of {options.rounds}, {name}: ITL max {one['itl_max']:.3f} s")
    return {
        "benchmark": "burst",
        "shape": shape.name,
        "model": yaml.safe_load((shape / "config.json").read_text()),
        "machine": machine,
        "vllm": vllm.__version__,
        "engine": arguments,
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "settings": {name: getattr(options, name) for name in _SETTINGS},
        "arms": {
            name: {
                "slot": ARMS[name],
                "figures": {
                    figure: _spread([one[figure] for one in rounds]) for figure in rounds[0]
                },
                "each_round": rounds,
            }
            for name, rounds in found.items()
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Over the rounds."""
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}


def _engine(shape: Path, slot: dict[str, Any] | None, arguments: dict[str, Any]) -> Any:
    import vllm

    with_slot = {
        "worker_extension_cls": "slot_vllm.SlotWorkerExtension",
        "additional_config": {"slot": slot},
    }
    return vllm.LLM(str(shape), **({} if slot is None else with_slot), **arguments)


def _find_shape(name: str) -> Path:
    """The directory of a shape of ``configs/shapes``, or of any ``config.json``."""
    for path in (SHAPES / name, Path(name)):
        if (path / "config.json").is_file():
            return path
    known = ", ".join(sorted(path.parent.name for path in SHAPES.glob("*/config.json")))
    raise SystemExit(f"--shape {name}: no config.json there; known: {known}")


def _engine_arguments(settings: Sequence[str]) -> dict[str, Any]:
    """Of KEY=VALUE, with values in YAML."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise SystemExit(f"--engine {setting}: KEY=VALUE is required")
        found[key] = yaml.safe_load(value)
    return found


def _prompts(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random token ids, equal for equal arguments."""
    generator = np.random.default_rng(seed)
    found: list[list[int]] = generator.integers(vocabulary, size=(count, tokens)).tolist()
    return found


def _optimized(llm: Any, arm: str) -> int:
    if ARMS[arm] is None:
        return 0
    (stats,) = llm.collective_rpc("slot_stats")
    return int(stats["optimized"])


def _table(result: dict[str, Any]) -> str:
    settings = result["settings"]
    lines = [
        f"{settings['running']} running, then {settings['burst']} prompts of "
        f"{settings['burst_tokens']} tokens; {settings['rounds']} rounds; ms; "
        "medians [lowest, highest]"
    ]
    for name, arm in result["arms"].items():
        lines.append(name)
        for figure, values in arm["figures"].items():
            low, high = values["lowest"] * 1e3, values["highest"] * 1e3
            lines.append(f"  {figure:10}{values['median'] * 1e3:12.1f} [{low:.1f}, {high:.1f}]")
    return "\n".join(lines)
