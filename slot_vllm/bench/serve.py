"""``serve``: throughput and latencies of one vLLM engine, with SLOT and without.

Real shapes, dummy weights; the same requests (random tokens) in both arms, in alternating rounds of
one engine; other requests in every round. vLLM's own defaults, but for the prefix cache, which is
off: the second arm would find the first one's prompts there. Both arms are of one SLOT engine; the
requests of ``off`` say ``slot_steps: 0``, with which vLLM does what it does without the plugin.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from slot_vllm.bench.command_line import add_engine_flag, add_result_flags, give, positive, say
from slot_vllm.bench.machine import describe_machine
from slot_vllm.bench.workload import (
    Load,
    Workload,
    differences,
    make_prompts,
    read_workloads,
)
from slot_vllm.params import SlotParams

# There where the repository is; an installation that is not editable does not bring it.
SHAPES = Path(__file__).parents[1] / "configs" / "shapes"

# What changes vLLM's processes and threads, and our kernels.
_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "SLOT_CPU_KERNELS",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_USE_V2_MODEL_RUNNER",
)
_WARM_UP_TOKENS = 16
# Of a CPU, where vLLM would take most of the memory there is.
CPU_KV_CACHE = 4 << 30


def add_command(commands: Any) -> None:
    """Adds ``serve`` to argparse's subparsers."""
    parser = commands.add_parser("serve", help=__doc__.partition(":")[2].split(".")[0].strip())
    parser.add_argument(
        "--shape", required=True, help="a directory of configs/shapes, or any with a config.json"
    )
    parser.add_argument("--workload", nargs="+", default=["short"], metavar="NAME")
    parser.add_argument("--rounds", type=positive, default=5, help="of each arm (default 5)")
    parser.add_argument("--steps", type=positive, default=SlotParams().steps)
    shrink = parser.add_argument_group("instead of the fixed workload's; the JSON says so")
    for name in ("--input-tokens", "--output-tokens", "--concurrency", "--requests"):
        shrink.add_argument(name, type=positive)
    add_engine_flag(parser, "quantization=fp8 enforce_eager=true")
    add_result_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from slot_vllm.bench.standard_output import to_standard_error

    shape = find_shape(options.shape)
    fixed = read_workloads(SHAPES / "workloads.yaml")
    if unknown := set(options.workload) - set(fixed):
        raise SystemExit(f"--workload {', '.join(unknown)}: allowed: {', '.join(fixed)}")
    changes = (options.input_tokens, options.output_tokens, options.concurrency, options.requests)
    workloads = {name: fixed[name].changed(*changes) for name in options.workload}
    with to_standard_error():
        result = measure(
            shape, workloads, options.rounds, options.steps, engine_arguments(options.engine)
        )
    for entry in result["workloads"]:
        name = entry["workload"]
        entry["changed"] = differences(fixed[name], workloads[name])
    give(result, _table(result), options)
    return 0


def measure(
    shape: Path, workloads: dict[str, Workload], rounds: int, steps: int, engine: dict[str, Any]
) -> dict[str, Any]:
    """The result as it is written to the file. shape: the directory of a config.json. engine:
    arguments of ``vllm.LLM`` beside or instead of ours."""
    import vllm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe_machine(device)
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "max_model_len": max(one.tokens for one in workloads.values()),
        "max_num_seqs": max(one.concurrency for one in workloads.values()),
        **({} if device == "cuda" else {"kv_cache_memory_bytes": CPU_KV_CACHE}),
        **engine,
    }
    llm = vllm.LLM(
        str(shape),
        worker_extension_cls="slot_vllm.SlotWorkerExtension",
        # Every request learns its own delta, also where prompts are equal, as in the warm-ups.
        additional_config={"slot": {"steps": 0, "delta_cache_mb": 0}},
        **options,
    )
    entries = [
        {"workload": name, **_measure_load(llm, workload, load, rounds, steps)}
        for name, workload in workloads.items()
        for load in workload.loads
    ]
    # Of the last worker: earlier pipeline stages know nothing of deltas.
    stats = llm.collective_rpc("slot_stats")[-1]
    return {
        "benchmark": "serve",
        "shape": shape.name,
        "model": yaml.safe_load((shape / "config.json").read_text()),
        "machine": machine,
        "vllm": vllm.__version__,
        "engine": options,
        "environment": environment(),
        "steps": steps,
        "workspace_bytes": stats["workspace_bytes"],
        "rounds": rounds,
        "workloads": entries,
    }


def _measure_load(
    llm: Any, workload: Workload, load: Load, rounds: int, steps: int
) -> dict[str, Any]:
    """Raises RuntimeError if a request with SLOT had no delta, or one without had one."""
    from slot_vllm.bench.closed_loop import Loop, closed_loop
    from slot_vllm.bench.latency import figures, summarize

    arms = {"off": {"slot_steps": 0}, "on": {"slot_steps": steps}}
    vocabulary = llm.model_config.get_vocab_size()

    def serve(arm: str, prompts: Sequence[list[int]], output_tokens: int) -> tuple[Loop, float]:
        before = llm.collective_rpc("slot_stats")[-1]
        loop = closed_loop(llm, prompts, output_tokens, load.concurrency, arms[arm])
        after = llm.collective_rpc("slot_stats")[-1]
        optimized = after["optimized"] - before["optimized"]
        if optimized != (len(prompts) if arm == "on" else 0) or after["failed"]:
            raise RuntimeError(
                f"{optimized} of {len(prompts)} requests were optimized in the arm {arm!r}, "
                f"{after['failed']} failed: {llm.collective_rpc('slot_errors')}"
            )
        return loop, after["optimize_seconds"] - before["optimize_seconds"]

    def prompts_of(round_number: int, count: int) -> list[list[int]]:
        return make_prompts(count, workload.input_tokens, vocabulary, round_number)

    say(f"concurrency {load.concurrency}: warm-up")
    for arm in arms:
        few = min(workload.output_tokens, _WARM_UP_TOKENS)
        serve(arm, prompts_of(0, min(load.concurrency, load.requests)), few)
    found: dict[str, list[Any]] = {arm: [] for arm in arms}
    shares = []
    for number in range(1, rounds + 1):
        prompts = prompts_of(number, load.requests)
        # What drifts must not meet one arm always later than the other.
        for arm in arms if number % 2 else reversed(arms):
            loop, optimizing = serve(arm, prompts, workload.output_tokens)
            found[arm].append(figures(loop))
            say(f"round {number} of {rounds}, {arm}: {found[arm][-1].throughput:.2f} tokens/s")
            if arm == "on":
                shares.append(optimizing / loop.seconds)
    return {
        "input_tokens": workload.input_tokens,
        "output_tokens": workload.output_tokens,
        **load.model_dump(),
        "optimize_share": sorted(shares)[len(shares) // 2],
        **summarize(found["off"], found["on"]).model_dump(),
        "each_round": {arm: [one.model_dump() for one in found[arm]] for arm in arms},
    }


def environment() -> dict[str, str]:
    """The variables that change what is measured."""
    return {name: value for name, value in sorted(os.environ.items()) if name in _ENVIRONMENT}


def find_shape(name: str) -> Path:
    """The directory of a shape of ``configs/shapes``, or of any ``config.json``."""
    for path in (SHAPES / name, Path(name)):
        if (path / "config.json").is_file():
            return path
    known = ", ".join(sorted(path.parent.name for path in SHAPES.glob("*/config.json")))
    raise SystemExit(f"--shape {name}: no config.json there; known: {known}")


def engine_arguments(settings: Sequence[str]) -> dict[str, Any]:
    """Of KEY=VALUE, with values in YAML."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise SystemExit(f"--engine {setting}: KEY=VALUE is required")
        found[key] = yaml.safe_load(value)
    return found


def _table(result: dict[str, Any]) -> str:
    lines = []
    for entry in result["workloads"]:
        lines.append(
            f"{entry['workload']}: {entry['input_tokens']} in, {entry['output_tokens']} out, "
            f"concurrency {entry['concurrency']}, {entry['requests']} requests x "
            f"{result['rounds']} rounds; medians [lowest, highest]"
        )
        lines.append(f"{'':12}{'without':>12}{'with SLOT':>12}{'ratio':>9}")
        for name, ratio in entry["ratio"].items():
            lines.append(
                f"{name:12}{entry['off'][name]['median']:12.4g}{entry['on'][name]['median']:12.4g}"
                f"{ratio['median']:9.3f} [{ratio['lowest']:.3f}, {ratio['highest']:.3f}]"
            )
        lines.append(f"optimizing: {entry['optimize_share']:.1%} of the time with SLOT")
    return "\n".join(lines)
