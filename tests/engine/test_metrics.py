"""What ``/metrics`` shows: the families, what they count, and that vLLM's own are never lost."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from vllm.entrypoints.serve.instrumentator import metrics as instrumentator

from slot_vllm.engine.frontend import cached_rpc, metrics
from slot_vllm.engine.wire.engine_settings import EXTENSION
from slot_vllm.engine.wire.worker_metrics import WorkerMetrics
from slot_vllm.engine.worker.histogram import Histogram
from slot_vllm.engine.worker.statistics import DROPS, Statistics
from slot_vllm.engine.worker.step_timer import StepTimer
from tests.conftest import ROOT
from tests.engine.test_step import TOKENS, RunnerState, arrival, begin, make_state, step

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: bytes | str) -> Samples:
    """Every sample, by name and labels; each must be there once."""
    text = text.decode() if isinstance(text, bytes) else text
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """Of the one sample with these labels among others."""
    (found,) = [v for (n, own), v in samples.items() if n == name and labels.items() <= set(own)]
    return found


def worker(state: RunnerState) -> WorkerMetrics:
    return state.metrics()


def shown(state: RunnerState) -> Samples:
    return parsed(metrics.exposition("m", {0: worker(state)}))


def outcomes(samples: Samples) -> dict[str, int]:
    counts = {
        outcome: int(value(samples, "vllm:slot_requests_total", outcome=outcome))
        for outcome in metrics.OUTCOMES
    }
    return {outcome: count for outcome, count in counts.items() if count}


def test_every_request_has_one_outcome() -> None:
    state = make_state(capacity=8)
    new = [
        arrival("a-1", TOKENS),
        arrival("b-1", TOKENS),
        arrival("c-1", [7]),
        arrival("d-1", [7]),
        arrival("e-1", TOKENS, bypassed="prompt_embeddings"),
        arrival("f-1", TOKENS, steps=0),
        arrival("g-1", [3, 10**6]),
        arrival("h-1", [*TOKENS, 1]),
        # Not admitted, which without defaults is a plain request.
        SimpleNamespace(
            req_id="i-1", sampling_params=SimpleNamespace(extra_args=None), lora_request=None
        ),
    ]
    state.registry.config = state.registry.config.model_copy(update={"steps": 0})
    begin(state, new)
    step(state, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0), ("c-1", [7], 0), ("d-1", [7], 0))
    step(state, ("g-1", [3, 1], 0), ("h-1", TOKENS, 0))
    assert value(shown(state), "vllm:slot_deltas_alive") == 1
    assert value(shown(state), "vllm:slot_requests_running") == 6
    # A preempted request of the V2 runner comes again; it is the same one.
    begin(state, [arrival("f-1", TOKENS, steps=0)])
    begin(state, finished=[request.req_id for request in new])
    samples = shown(state)
    assert outcomes(samples) == {
        "optimized": 1,
        "shared": 1,
        "one_token": 2,
        "bypassed": 1,
        "plain": 2,
        "failed": 1,
        "aborted": 1,
    }
    assert sum(outcomes(samples).values()) == len(new)
    assert not state.registry.requests
    assert (
        value(samples, "vllm:slot_fallbacks_total", outcome="bypassed", reason="prompt_embeddings")
        == 1
    )
    assert value(samples, "vllm:slot_deltas_alive") == 0
    assert value(samples, "vllm:slot_cached_deltas") == 2
    assert value(samples, "vllm:slot_up") == 1


def test_reasons_of_failures_become_labels() -> None:
    state = make_state()
    state.statistics.counters["failed.optimizer"] += 3
    samples = shown(state)
    assert value(samples, "vllm:slot_fallbacks_total", outcome="failed", reason="optimizer") == 3


def test_one_time_per_step_that_learns_and_one_drop_per_prompt() -> None:
    state = make_state(delta_cache_mb=0)
    begin(state, [arrival(name, TOKENS) for name in ("a-1", "b-1")] + [arrival("c-1", TOKENS[:3])])
    step(state, ("a-1", TOKENS, 0), ("b-1", TOKENS, 0))
    step(state, ("c-1", TOKENS[:2], 0))
    step(state, ("c-1", TOKENS[2:3], 2))
    step(state, ("a-1", [4], len(TOKENS)))
    samples = shown(state)
    assert value(samples, "vllm:slot_optimize_seconds_count") == 2
    assert value(samples, "vllm:slot_optimize_seconds_sum") > 0
    assert value(samples, "vllm:slot_loss_drop_nats_bucket", le="+Inf") == 3
    assert value(samples, "vllm:slot_prompt_tokens_total") == 2 * len(TOKENS) + 3


@pytest.mark.parametrize(("report_loss", "told"), [(False, 0), (True, 1)])
def test_one_step_has_a_drop_only_with_the_loss_after_it(report_loss: bool, told: int) -> None:
    state = make_state(report_loss=report_loss)
    begin(state, [arrival("a-1", TOKENS, steps=1)])
    step(state, ("a-1", TOKENS, 0))
    assert value(shown(state), "vllm:slot_loss_drop_nats_bucket", le="+Inf") == told


def test_drops_by_their_upper_bounds() -> None:
    statistics = Statistics(torch.device("cpu"), final_loss=False)
    first = torch.tensor(2.0)
    nan = torch.tensor(torch.nan)
    statistics.observe_drops([torch.stack([first, first - d]) for d in (-5.0, 0.0, 0.25, 1.0)])
    statistics.observe_drops([torch.tensor([2.0]), torch.tensor([]), torch.stack([first, nan])])
    statistics.observe_drops([torch.tensor([3.0, 9.0, 1.5])])
    told = statistics.histograms()["loss_drop"]["counts"]
    counts = dict(zip([*DROPS, None], told, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {
        -1.0: 1,
        0.0: 1,
        0.3: 1,
        1.0: 1,
        3.0: 1,
    }


def test_a_histogram_as_prometheus_has_it() -> None:
    ours = Histogram([0.1, 1.0], torch.device("cpu"))
    theirs = prometheus_client.Histogram("h", "", registry=None, buckets=[0.1, 1.0])
    for seen in (0.05, 0.1, 0.5, 1.0, 7.0):
        ours.observe(torch.tensor([seen], dtype=torch.float64))
        theirs.observe(seen)
    family = metrics.HistogramMetricFamily("h", "", labels=[])
    metrics._add_histogram(family, [], ours.snapshot())
    (expected,) = theirs.collect()
    mine = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    assert mine == {
        (s.name, s.labels.get("le")): s.value
        for s in expected.samples
        if not s.name.endswith("_created")
    }


def test_a_device_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    finished: set[int] = set()

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            Event.made += 1
            self.number = Event.made

        def record(self) -> None: ...

        def query(self) -> bool:
            return self.number in finished

        def elapsed_time(self, end: "Event") -> float:
            assert end.number == self.number + 1 and end.query()
            return 20.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = StepTimer(torch.device("cuda"))
    with timer.step():
        pass
    with pytest.raises(RuntimeError), timer.step():
        raise RuntimeError
    assert sum(timer.snapshot()["counts"]) == 0
    finished.update((1, 2))
    assert timer.snapshot()["total"] == pytest.approx(0.02)
    finished.update((3, 4))
    assert sum(timer.snapshot()["counts"]) == 2


def test_a_step_that_cannot_be_told_costs_no_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state()

    def observe(values: torch.Tensor) -> None:
        raise RuntimeError("no histogram")

    monkeypatch.setattr(state.statistics.step_timer._histogram, "observe", observe)
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", TOKENS, 0))
    assert state.statistics.read()["optimized"] == 1
    assert state.statistics.read()["failed"] == 0
    (error,) = state.failures.errors
    assert "no histogram" in error


def test_steps_are_told_on_the_host_whatever_the_default_device() -> None:
    timer = StepTimer(torch.device("cpu"))
    with torch.device("meta"):
        with timer.step():
            pass
        timer.collect()
    assert sum(timer.snapshot()["counts"]) == 1


class EngineClient:
    """engines: what each engine's workers answer."""

    def __init__(self, engines: list[list[Any]], extension: str = EXTENSION) -> None:
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(worker_extension_cls=extension),
            model_config=SimpleNamespace(served_model_name="m"),
        )
        self.engine_core = self
        self.engine_ranks_managed = range(len(engines))
        self.engines = engines

    async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
        assert call[0] == "collective_rpc" and (call[2], call[4]) == (None, None)
        if call[1] == "slot_receipts":
            return [[worker["receipts"](*call[3]) for worker in engine] for engine in self.engines]
        assert not call[3]
        if call[1] == "slot_stats":
            return [[worker["stats"] for worker in engine] for engine in self.engines]
        assert call[1] == "slot_metrics"
        return list(self.engines)


@pytest.fixture
def scraped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """scraped(engine_client): what a server shows, with vLLM's own route."""
    monkeypatch.setattr(instrumentator, "attach_router", instrumentator.attach_router)
    metrics.install()

    def get(engine_client: Any) -> str:
        app = FastAPI()
        instrumentator.attach_router(app)
        app.state.engine_client = engine_client
        response = TestClient(app).get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=")
        assert "python_info" in response.text
        return response.text

    yield get


def test_each_engine_counts_once(scraped: Any) -> None:
    first, second = make_state(), make_state()
    begin(first, [arrival("a-1", TOKENS)])
    step(first, ("a-1", TOKENS, 0))
    # Two ranks of one engine saw the same request.
    samples = parsed(scraped(EngineClient([[worker(first)] * 2, [worker(second)]])))
    for engine, count in (("0", 1), ("1", 0)):
        labels = {"engine": engine, "model_name": "m", "outcome": "optimized"}
        assert value(samples, "vllm:slot_requests_total", **labels) == count


def test_losses_that_rose_are_counted() -> None:
    state = make_state(report_loss=True)
    begin(state, [arrival("a-1", TOKENS, steps=1, lr=100.0)])
    step(state, ("a-1", TOKENS, 0))
    assert value(shown(state), "vllm:slot_loss_rose_total") == state.stats()["loss_rose"] == 1


def test_an_engine_without_slot_shows_nothing_of_it(scraped: Any) -> None:
    assert "slot" not in scraped(EngineClient([], extension=""))
    assert "slot" not in scraped(None)


@pytest.mark.parametrize("trouble", ["dead", "busy"])
def test_an_engine_that_does_not_answer_costs_only_its_metrics(
    scraped: Any, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EngineClient([[worker(make_state())]])

    async def no_answer(*_: Any) -> Any:
        if trouble == "dead":
            raise RuntimeError("the engine is dead")
        await asyncio.Event().wait()

    monkeypatch.setattr(cached_rpc, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(client, "call_utility_all_async", no_answer)
    samples = parsed(scraped(client))
    assert value(samples, "vllm:slot_up", model_name="m") == 0
    assert not [name for name, _ in samples if name.startswith("vllm:slot_requests")]


def exported() -> Samples:
    state = make_state()
    state.statistics.counters["bypassed.prompt_embeddings"] += 1
    return shown(state)


def families_of(names: Iterable[str]) -> set[str]:
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}


def test_the_dashboard_asks_for_what_is_exported() -> None:
    dashboard = json.loads((ROOT / "scripts/grafana/slot.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    samples = exported()
    names = {name for name, _ in samples}
    asked = {name for e in expressions for name in re.findall(r"vllm:\w+", e)}
    assert asked <= names
    # And it leaves nothing out.
    assert families_of(asked) == families_of(names)
    # Labels, and the values that are asked for.
    labels = {label for _, own in samples for label in own}
    keys = {key for key, _ in labels}
    for expression in expressions:
        assert set(re.findall(r'(\w+)="([^"]+)"', expression)) <= labels
        for by in re.findall(r"by \(([^)]+)\)", expression):
            assert set(by.split(", ")) <= keys
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_documentation_has_every_metric() -> None:
    text = (ROOT / "docs/observability.md").read_text()
    documented = set(re.findall(r"`(vllm:slot_\w+)", text))
    assert documented == families_of(name for name, _ in exported())
