"""``apply``: W delta on each row of logits, as a bias per request or as extra rows of the head.

What a decode step costs with the bias added to its rows (ours), with the deltas as further rows of
the step's product, whose logits are then added, and with neither; and the memory that each keeps.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slot_vllm.bench.command_line import add_result_flags, give, positive
from slot_vllm.bench.machine import describe_machine
from slot_vllm.bench.shape import DTYPES
from slot_vllm.bench.timing import fastest
from slot_vllm.kernels.apply_delta import add_bias_rows
from slot_vllm.optim.head import Head

PLAIN, BIAS, EXTRA_ROWS = "plain", "bias", "extra rows"
_LR = 0.1


def add_command(commands: Any) -> None:
    """Adds ``apply`` to argparse's subparsers."""
    parser = commands.add_parser("apply", help=__doc__.partition(":")[2].split(",")[0].strip())
    parser.add_argument("--hidden", type=positive, default=1536, help="d (default %(default)s)")
    parser.add_argument("--vocab", type=positive, default=151936, help="V (default %(default)s)")
    parser.add_argument(
        "--rows",
        type=positive,
        nargs="+",
        default=[1, 16, 64],
        help="running requests, each with a delta (default 1 16 64)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=positive, default=20, help="timed calls of each variant")
    add_result_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    machine = describe_machine(options.device)
    shape = {key: getattr(options, key) for key in ("hidden", "vocab", "dtype", "device")}
    steps = [
        measure(
            options.hidden,
            options.vocab,
            rows,
            DTYPES[options.dtype],
            options.device,
            options.rounds,
        )
        for rows in options.rows
    ]
    result = {
        "benchmark": "apply",
        "shape": shape,
        "machine": machine,
        "rounds": options.rounds,
        "steps": steps,
    }
    give(result, _table(steps), options)
    return 0


def measure(
    hidden_size: int, vocabulary: int, rows: int, dtype: torch.dtype, device: str, rounds: int
) -> dict[str, Any]:
    """One number of rows. Per variant: seconds; ``ratio``, over the plain product's; what it keeps
    for each request, bytes; and the largest error of the added W delta, as a share of its largest
    value, against float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, hidden_size, generator=generator) / hidden_size**0.5
    hidden = torch.randn(rows, hidden_size, generator=generator).to(device, dtype)
    deltas = _LR * torch.randn(rows, hidden_size, generator=generator).to(device)
    head = Head(weight.to(device, dtype))
    del weight
    owners = torch.arange(rows, device=device)
    table = torch.zeros(1 + rows, vocabulary, device=device)
    head.exact_shift(deltas, out=table[1:])
    low = deltas.to(dtype)

    def plain() -> Tensor:
        return (hidden @ head.weight.T).float()

    def bias() -> Tensor:
        logits = plain()
        add_bias_rows(logits, table, owners + 1)
        return logits

    def extra_rows() -> Tensor:
        both = torch.cat((hidden, low)) @ head.weight.T
        return both[:rows].float().add_(both[rows:][owners])

    variants: dict[str, Callable[[], Tensor]] = {
        PLAIN: plain,
        BIAS: bias,
        EXTRA_ROWS: extra_rows,
    }
    for variant in variants.values():
        variant()
    timings = fastest(variants, rounds, device)
    exact = deltas[:1].double() @ head.weight.double().T
    own = timings[PLAIN].result[:1].double()
    kept = {PLAIN: 0, BIAS: 4 * vocabulary, EXTRA_ROWS: hidden_size * dtype.itemsize}
    return {
        "rows": rows,
        "variants": {
            name: {
                "seconds": timing.seconds,
                "ratio": timing.seconds / timings[PLAIN].seconds,
                "bytes_per_request": kept[name],
                "error": None
                if name == PLAIN
                else _largest(timing.result[:1].double() - own - exact) / _largest(exact),
            }
            for name, timing in timings.items()
        },
    }


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def _table(steps: list[dict[str, Any]]) -> str:
    lines = [f"{'rows':>6}  {'':12}{'ms':>10}{'ratio':>8}{'bytes each':>12}{'error':>10}"]
    for step in steps:
        for name, entry in step["variants"].items():
            error = "-" if entry["error"] is None else f"{entry['error']:.1e}"
            lines.append(
                f"{step['rows']:6}  {name:12}{entry['seconds'] * 1e3:10.2f}{entry['ratio']:8.3f}"
                f"{entry['bytes_per_request']:12}{error:>10}"
            )
    return "\n".join(lines)
