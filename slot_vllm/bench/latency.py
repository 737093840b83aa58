"""Throughput and latencies of the two arms of ``serve``, and their ratios over the rounds."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from slot_vllm.bench.closed_loop import Loop

PERCENTILES = (50, 99)


class Figures(BaseModel):
    """One arm in one round. throughput: generated tokens per second. ttft: seconds from handing a
    request to the engine to its first token. itl: seconds from one token to the next."""

    throughput: float
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float


NAMES = tuple(Figures.model_fields)


class Spread(BaseModel):
    """Over the rounds."""

    median: float
    lowest: float
    highest: float


class Summary(BaseModel):
    """off, on: without and with SLOT. ratio: on over off of the same round, whose requests are the
    same; so above 1 is good for throughput and bad for latencies."""

    off: dict[str, Spread]
    on: dict[str, Spread]
    ratio: dict[str, Spread]


def figures(loop: Loop) -> Figures:
    first = [one.first_token_seconds for one in loop.served]
    between = [seconds for one in loop.served for seconds in one.inter_token_seconds]
    ttft, itl = np.percentile(first, PERCENTILES), np.percentile(between, PERCENTILES)
    return Figures(
        throughput=sum(one.tokens for one in loop.served) / loop.seconds,
        ttft_p50=ttft[0],
        ttft_p99=ttft[1],
        itl_p50=itl[0],
        itl_p99=itl[1],
    )


def summarize(off: Sequence[Figures], on: Sequence[Figures]) -> Summary:
    """Of as many rounds of either arm, in order."""
    without = {name: [getattr(one, name) for one in off] for name in NAMES}
    adapted = {name: [getattr(one, name) for one in on] for name in NAMES}
    return Summary(
        off={name: spread(values) for name, values in without.items()},
        on={name: spread(values) for name, values in adapted.items()},
        ratio={
            name: spread([b / a for a, b in zip(without[name], adapted[name], strict=True)])
            for name in NAMES
        },
    )


def spread(values: Sequence[float]) -> Spread:
    return Spread(median=float(np.median(values)), lowest=min(values), highest=max(values))
