"""``prefix``: seconds of many samples of one prompt, hidden states in the KV cache against bypass.

Both engines run in this process, in alternating rounds; each round has a prompt of its own, which
neither engine has seen.
"""

import argparse
import os
import statistics
import time
from typing import Any

import torch

from slot_vllm.bench.command_line import add_result_flags, give, say
from slot_vllm.bench.machine import describe_machine

# "bypass" is an engine as it was without either: every sample computes and learns for itself.
VARIANTS: dict[str, dict[str, Any]] = {
    "cache": {"hidden_cache": "on"},
    "bypass": {"hidden_cache": "off", "delta_cache_mb": 0},
}
_COUNTERS = ("optimized", "shared", "hidden_rows_cached", "hidden_rows_computed", "failed")


def add_command(commands: Any) -> None:
    """Adds ``prefix`` to argparse's subparsers."""
    parser = commands.add_parser("prefix", help=__doc__.partition(":")[2].split(".")[0].strip())
    parser.add_argument("--model", required=True, help="its directory")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--samples", type=int, default=64, help="default %(default)s")
    parser.add_argument("--tokens", type=int, default=600, help="of the prompt, %(default)s")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each, %(default)s")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    # Hits are whole blocks: a sample computes the rest of its prompt again.
    parser.add_argument("--block-size", type=int, default=32, help="tokens, %(default)s")
    parser.add_argument("--kv-cache-mb", type=int, default=256, help="of each engine, MiB")
    add_result_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    result = measure(options)
    give(result, _table(result), options)
    return 0


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{name:8}{entry['median_seconds']:8.3f} s  {entry['counters']}"
        for name, entry in result["variants"].items()
    ]
    by_round = result["speedup_by_round"]
    return "\n".join([*lines, f"speedup {result['speedup']:.2f} (median; by round {by_round})"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The result as it is written to the file; ``speedup`` is bypass over cache, the median of the
    rounds' ratios."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The result alone goes to the standard output.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    machine = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    engines = {name: _engine(options, slot) for name, slot in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    before: dict[str, dict[str, Any]] = {}
    for round_ in range(options.rounds + 1):
        if round_ == 1:  # the first round warms up
            before = {name: _stats(llm) for name, llm in engines.items()}
        for name, llm in engines.items():
            taken = _sample(llm, options, seed=round_)
            if round_:
                seconds[name].append(taken)
    variants = {
        name: {
            "slot": VARIANTS[name],
            "seconds": seconds[name],
            "median_seconds": statistics.median(seconds[name]),
            "counters": {counter: after[counter] - before[name][counter] for counter in _COUNTERS},
        }
        for name, llm in engines.items()
        for after in [_stats(llm)]
    }
    settings = (
        "model",
        "dtype",
        "samples",
        "tokens",
        "new_tokens",
        "block_size",
        "steps",
        "rounds",
    )
    by_round = [b / c for b, c in zip(seconds["bypass"], seconds["cache"], strict=True)]
    return {
        "benchmark": "prefix",
        "settings": {name: getattr(options, name) for name in settings},
        "machine": machine,
        "variants": variants,
        "speedup": statistics.median(by_round),
        "speedup_by_round": [round(ratio, 2) for ratio in by_round],
    }


def _engine(options: argparse.Namespace, slot: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(
        options.model,
        dtype=options.dtype,
        max_model_len=options.tokens + options.new_tokens + 1,
        max_num_seqs=options.samples,
        block_size=options.block_size,
        kv_cache_memory_bytes=options.kv_cache_mb << 20,
        enforce_eager=not torch.cuda.is_available(),
        worker_extension_cls="slot_vllm.SlotWorkerExtension",
        additional_config={"slot": {"workspace_mb": 128, **slot}},
    )


def _sample(llm: Any, options: argparse.Namespace, seed: int) -> float:
    """Seconds of all samples of a prompt of random tokens."""
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(seed)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    tokens = torch.randint(10, vocabulary - 10, (options.tokens,), generator=generator).tolist()
    params = SamplingParams(
        n=options.samples,
        temperature=1.0,
        max_tokens=options.new_tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args={"slot_steps": options.steps},
    )
    began = time.perf_counter()
    (output,) = llm.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)
    taken = time.perf_counter() - began
    if len(output.outputs) != options.samples:
        raise RuntimeError(f"{len(output.outputs)} samples came back, not {options.samples}")
    say(f"{taken:8.3f} s")
    return taken


def _stats(llm: Any) -> dict[str, Any]:
    stats: dict[str, Any] = llm.collective_rpc("slot_stats")[-1]
    return stats
