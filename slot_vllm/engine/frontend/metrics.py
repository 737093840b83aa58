"""SLOT's metrics on the server's own ``/metrics``.

The counters live in the workers. A scrape asks every engine for them, unless another one did within
the last second, so that nothing runs between scrapes; the engine answers between two steps. This
holds for ``--api-server-count`` too, where vLLM's own metrics are merged from files of all server
processes: whichever process is asked, these come from the engine, once.
"""

import itertools
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from slot_vllm.engine.frontend.cached_rpc import CachedRpc
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.engine_settings import asks_for_slot
from slot_vllm.engine.wire.worker_metrics import HistogramSnapshot, WorkerMetrics

logger = logging.getLogger("vllm.slot_vllm")

_PATH = "/metrics"

_LABELS = ("model_name", "engine")

# Each request has one, and "failed" too if it lost its delta after it was optimized or shared.
OUTCOMES = ("optimized", "shared", "one_token", "failed", "bypassed", "plain", "aborted")
FALLBACKS = ("bypassed", "failed")


# Families that show a number of ``slot_stats`` or a histogram: which, and what it is.
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of the prompts that came to be learned from."),
    "loss_rose": ("loss_rose", "Prompts whose loss rose (report_loss)."),
}
_GAUGES = {
    "requests_running": ("requests", "Requests with SLOT in the engine."),
    "deltas_alive": ("table_rows", "Deltas in use by running requests."),
    "cached_deltas": ("shared_deltas", "Deltas kept for later requests with an equal prompt."),
    "kept_deltas": ("kept_deltas", "Deltas of finished requests that can be read (keep_deltas)."),
    "workspace_bytes": ("workspace_bytes", "The optimizer's memory."),
}
_HISTOGRAMS = {
    "optimize_seconds": ("optimize_seconds", "Seconds of learning, per engine step that learns."),
    "loss_drop_nats": (
        "loss_drop",
        "Prompt loss before the first step less the last one computed, nats per token, per prompt "
        "learned from.",
    ),
}


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def families(model_name: str, engines: Mapping[int, WorkerMetrics] | None) -> list[Metric]:
    """All metric families. engines: by index; None where the engine did not answer."""
    up = GaugeMetricFamily(
        "vllm:slot_up", "Whether the engine answered this scrape.", labels=["model_name"]
    )
    up.add_metric([model_name], float(engines is not None))
    if engines is None:
        return [up]

    counter, gauge = (partial(_made, f) for f in (CounterMetricFamily, GaugeMetricFamily))
    requests = counter("requests", "Requests by what SLOT did for them.", "outcome")
    fallbacks = counter(
        "fallbacks", "Requests served without SLOT, by reason.", "outcome", "reason"
    )
    rows = counter("hidden_rows", "Rows of SLOT prompts, by where they came from.", "source")
    pending = gauge("pending_bytes", "Hidden states of incomplete prompts, by place.", "place")
    numbers = [(counter(name, text), key) for name, (key, text) in _COUNTERS.items()]
    numbers += [(gauge(name, text), key) for name, (key, text) in _GAUGES.items()]
    histogram = partial(_made, HistogramMetricFamily)
    histograms = [(histogram(name, text), key) for name, (key, text) in _HISTOGRAMS.items()]
    for index, metrics in sorted(engines.items()):
        stats, labels = metrics["stats"], [model_name, str(index)]
        for outcome in OUTCOMES:
            requests.add_metric([*labels, outcome], stats[outcome])
        for name, count in sorted(stats.items()):
            outcome, _, reason = name.partition(".")
            if reason and outcome in FALLBACKS:
                fallbacks.add_metric([*labels, outcome, reason], count)
        for source in ("cached", "computed"):
            rows.add_metric([*labels, source], stats[f"hidden_rows_{source}"])
        for place in ("device", "host"):
            pending.add_metric([*labels, place], stats[f"pending_{place}_bytes"])
        for family, key in numbers:
            family.add_metric(labels, stats[key])
        for family, key in histograms:
            _add_histogram(family, labels, metrics["histograms"][key])
    made = [family for family, _ in (*numbers, *histograms)]
    return [up, requests, fallbacks, rows, pending, *made]


def exposition(model_name: str, engines: Mapping[int, WorkerMetrics] | None) -> bytes:
    """The families in Prometheus' text format, to be put after others in the same format."""
    return generate_latest(_Families(families(model_name, engines)))


async def ask(engine_client: Any) -> dict[int, WorkerMetrics]:
    """The metrics of every engine, by index. All ranks of an engine's last pipeline stage count
    the same requests, so the last worker speaks for them."""
    answers = await ask_engines(engine_client, "slot_metrics")
    return {index: workers[-1] for index, workers in answers.items()}


async def ask_engines(engine_client: Any, method: str, *args: Any) -> dict[int, list[Any]]:
    """What ``method`` of each worker answers, by the index of its data-parallel engine. The
    client's own ``collective_rpc`` gives the first engine's answers alone."""
    core = engine_client.engine_core
    answers = await core.call_utility_all_async("collective_rpc", method, None, args, None)
    return dict(zip(core.engine_ranks_managed, answers, strict=True))


async def scrape(model_name: str, asked: CachedRpc[dict[int, WorkerMetrics]]) -> bytes:
    """What the engines' metrics are; without an answer in time only that there was none."""
    try:
        engines = await asked.answer()
    except Exception as error:
        # vLLM's own metrics must still be served, above all when an engine is in trouble.
        logger.warning("SLOT metrics: the engine did not answer: %r", error)
        return exposition(model_name, None)
    return exposition(model_name, engines)


def install() -> None:
    """From now on ``/metrics`` of each new server shows SLOT's too, if its engine asks for SLOT.
    Idempotent."""
    from vllm.entrypoints.serve.instrumentator import metrics as instrumentator

    @wrap(instrumentator, "attach_router")
    def attach_router(original: Any, app: FastAPI) -> None:
        original(app)
        extend(app)


def extend(app: FastAPI) -> None:
    """Put a route before vLLM's own that appends to what it answers."""
    own = next(r for r in app.router.routes if isinstance(r, APIRoute) and r.path == _PATH)

    async def metrics(request: Request) -> Response:
        response: Response = await run_in_threadpool(own.endpoint, request)
        engine_client = getattr(request.app.state, "engine_client", None)
        if engine_client is not None and asks_for_slot(engine_client.vllm_config):
            state = request.app.state
            if not hasattr(state, "slot_metrics"):
                state.slot_metrics = CachedRpc(partial(ask, engine_client))
            model_name = engine_client.vllm_config.model_config.served_model_name
            body = bytes(response.body) + await scrape(model_name, state.slot_metrics)
            return Response(body, media_type=response.headers["content-type"])
        return response

    app.router.routes.insert(0, APIRoute(_PATH, metrics, methods=["GET"], include_in_schema=False))


def _made(family: Any, name: str, documentation: str, *labels: str) -> Any:
    return family(f"vllm:slot_{name}", documentation, labels=[*_LABELS, *labels])


def _add_histogram(
    family: HistogramMetricFamily, labels: list[str], histogram: HistogramSnapshot
) -> None:
    bounds = [*map(floatToGoString, histogram["bounds"]), "+Inf"]
    cumulated = itertools.accumulate(histogram["counts"])
    family.add_metric(labels, list(zip(bounds, cumulated, strict=True)), histogram["total"])
