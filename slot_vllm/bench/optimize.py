"""``optimize``: seconds, memory and error of learning the deltas, ours beside the published loop's.

All times are of one process and one run, in alternating rounds; each variant's peak memory is
measured in a process of its own.
"""

import argparse
from dataclasses import fields
from typing import Any

import torch

from slot_vllm.bench import floor
from slot_vllm.bench.command_line import add_result_flags, give, positive, say
from slot_vllm.bench.machine import describe_machine
from slot_vllm.bench.peak_memory import peak_extra_bytes
from slot_vllm.bench.shape import DTYPES, Shape, make_problem
from slot_vllm.bench.timing import fastest
from slot_vllm.bench.variants import (
    OPTIONS,
    OURS,
    PUBLISHED,
    bare_products,
    make_variant,
    names,
    settings_of_options,
    warm_up,
)
from slot_vllm.kernels.compiled import library_for
from slot_vllm.optim.head import Head
from slot_vllm.optim.oracle import tiled_oracle

# Above this the float64 oracle, which takes T products, takes over a minute on two cores.
_ORACLE_OPERATIONS = 3e12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hidden", type=positive, default=1536, help="d (default %(default)s)")
    parser.add_argument(
        "--vocab",
        dest="vocabulary",
        metavar="VOCAB",
        type=positive,
        default=151936,
        help="V (default %(default)s)",
    )
    parser.add_argument(
        "--tokens", type=positive, default=256, help="of each request (default %(default)s)"
    )
    parser.add_argument("--requests", type=positive, default=1)
    parser.add_argument(
        "--shared", type=int, default=0, help="so many first tokens are the same in all requests"
    )
    parser.add_argument("--steps", type=positive, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workspace-mb", type=positive, default=512, help="ours, MiB")
    parser.add_argument("--rounds", type=positive, default=3, help="timed calls of each variant")
    parser.add_argument(
        "--oracle",
        choices=("auto", "on", "off"),
        default="auto",
        help="compare with float64; auto: where that takes less than about a minute",
    )
    parser.add_argument(
        "--plain-form", action="store_true", help="also ours with a softmax in every pass"
    )
    parser.add_argument(
        "--options",
        action="store_true",
        help="also ours with each option that is not the paper's, as a multiple of the paper's",
    )
    add_result_flags(parser)


def run(options: argparse.Namespace) -> int:
    if not 0 <= options.shared <= options.tokens:
        raise SystemExit(f"--shared {options.shared}: allowed: 0 to --tokens, {options.tokens}")
    shape = Shape(**{field.name: getattr(options, field.name) for field in fields(Shape)})
    result = measure(shape, options.rounds, options.oracle, options.plain_form, options.options)
    give(result, _table(result), options)
    return 0


def measure(
    shape: Shape, rounds: int, oracle: str, plain_form: bool = False, options: bool = False
) -> dict[str, Any]:
    """The result as it is written to the file. oracle: ``auto``, ``on`` or ``off``."""
    machine = describe_machine(shape.device)
    say("peak memory, one process per variant")
    compared = names(shape.device, plain_form, options)
    peaks = {name: peak_extra_bytes(shape, name) for name in compared}
    head, prompts = make_problem(shape)
    variants = {}
    for name in compared:
        warm_up(shape, name)
        variants[name] = make_variant(name, head, prompts, shape.workspace_mb)
    say("seconds")
    timed = {**variants, **bare_products(head, prompts), **floor.parts(head, shape)}
    timings = fastest(timed, rounds, shape.device)
    bare = min(("mm", "linear"), key=lambda name: timings[name].seconds)

    operations = 2 * shape.rows * shape.vocabulary * shape.hidden * shape.steps
    exact = None
    if oracle == "on" or (oracle == "auto" and operations <= _ORACLE_OPERATIONS):
        say("the float64 oracle")
        exact = torch.stack([tiled_oracle(head, prompt) for prompt in prompts])
    entries = {}
    for name in variants:
        seconds = timings[name].seconds
        # An option's deltas are not those of the oracle, which has the paper's settings.
        compared_with = None if name in OPTIONS else exact
        entries[name] = {
            "seconds": seconds,
            "cpu_seconds": timings[name].cpu_seconds,
            "speedup": timings[PUBLISHED].seconds / seconds,
            "paper_multiple": seconds / timings[OURS].seconds,
            "gemm_multiple": seconds / timings[bare].seconds,
            "peak_extra_bytes": peaks[name],
            "largest_difference": None
            if compared_with is None
            else (timings[name].result.double() - compared_with).abs().max().item(),
        }
    ours = entries[OURS]
    return {
        "benchmark": "optimize",
        "shape": shape.as_dict(),
        "machine": machine,
        "kernels": _kernels(head),
        "rounds": rounds,
        "bare": {
            "name": bare,
            "seconds": timings[bare].seconds,
            "cpu_seconds": timings[bare].cpu_seconds,
            "mm": timings["mm"].seconds,
            "linear": timings["linear"].seconds,
        },
        "options": settings_of_options() if options else {},
        "variants": entries,
        "speedup": ours["speedup"],
        "gemm_multiple": ours["gemm_multiple"],
        **floor.floor(shape, timings, timings[OURS].seconds, timings[bare].seconds),
        "peak_extra_bytes": ours["peak_extra_bytes"],
    }


def _kernels(head: Head) -> str:
    """Which of our kernels ran: ``compiled`` or ``torch`` on a CPU, else the device."""
    if head.weight.device.type != "cpu":
        return head.weight.device.type
    return "torch" if library_for(head.weight) is None else "compiled"


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{'':20}{'seconds':>10}{'speedup':>10}{'x bare':>10}{'x paper':>10}"
        f"{'peak MiB':>10}{'error':>12}"
    ]
    for name, entry in result["variants"].items():
        error = entry["largest_difference"]
        lines.append(
            f"{name:20}{entry['seconds']:10.3f}{entry['speedup']:10.2f}"
            f"{entry['gemm_multiple']:10.2f}{entry['paper_multiple']:10.2f}"
            f"{entry['peak_extra_bytes'] / 2**20:10.0f}"
            + ("           -" if error is None else f"{error:12.2e}")
        )
    bare = result["bare"]
    lines.append(f"{'bare ' + bare['name']:20}{bare['seconds']:10.3f}")
    lines.append(f"{'floor':20}{result['floor_seconds']:10.3f}")
    lines.append(f"ours is {result['floor_multiple']:.2f} times the floor")
    return "\n".join(lines)
