"""The spans that vLLM makes of requests carry what admission decided.

In a process of its own, because OpenTelemetry's provider of tracers can be set once per process.
"""

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.sampling_params import BeamSearchParams

from tests.engine.cases import Case, random_tokens
from tests.engine.generate import run

PROMPT = {"prompt_token_ids": list(random_tokens(20, seed=1))}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("vllm.tracing.otel.get_span_exporter", lambda endpoint: exporter)
    return exporter


def spans_of(exporter: InMemorySpanExporter) -> list[dict[str, Any]]:
    """The attributes of the request spans since the last call, in order."""
    provider: Any = trace.get_tracer_provider()
    provider.force_flush()
    spans = [span for span in exporter.get_finished_spans() if span.name == "llm_request"]
    exporter.clear()
    return [dict(span.attributes or {}) for span in spans]


def slot_of(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name.startswith("slot.")}


def test_request_spans(
    tiny_model: str, engine: Callable[..., Any], exporter: InMemorySpanExporter
) -> None:
    from vllm.v1.engine.output_processor import OutputProcessor

    untraced = engine(tiny_model, slot={"steps": 3})
    run(untraced, [Case(random_tokens(20, seed=1), 2, 0.5, 2)])
    assert not hasattr(OutputProcessor.do_tracing, "__wrapped__")

    options = {
        "otlp_traces_endpoint": "http://nowhere:4317",
        "disable_log_stats": False,
        # For beam search.
        "skip_tokenizer_init": False,
    }
    llm = engine(tiny_model, slot={"steps": 3}, **options)
    spans_of(exporter)
    (output,) = run(llm, [Case(random_tokens(20, seed=1), 2, 0.5, 2)])
    (attributes,) = spans_of(exporter)
    assert slot_of(attributes) == {
        "slot.outcome": "admitted",
        "slot.steps": 2,
        "slot.lr": 0.5,
        "slot.rounding": "exact",
    }
    # vLLM's own are still there.
    assert attributes["gen_ai.usage.prompt_tokens"] == 20
    assert attributes["gen_ai.request.id"] == output.request_id

    run(llm, [Case(random_tokens(20, seed=1), 0, 0.5, 2)])
    assert [slot_of(a) for a in spans_of(exporter)] == [{"slot.outcome": "plain"}]

    run(llm, [Case(random_tokens(20, seed=1), 1, 0.5, 2)], n=2, temperature=1.0)
    several = spans_of(exporter)
    assert len(several) == 2 and all(a["slot.steps"] == 1 for a in several)

    llm.beam_search([PROMPT], BeamSearchParams(beam_width=2, max_tokens=2))
    beams = spans_of(exporter)
    assert beams
    for beam in beams:
        expected = {"slot.outcome": "bypassed", "slot.bypassed_reason": "beam_search"}
        assert slot_of(beam) == expected

    # Wraps stay in the process, but say nothing of an engine without SLOT.
    plain = engine(tiny_model, **options)
    run(plain, [Case(random_tokens(20, seed=1), 2, 0.5, 2)])
    assert [slot_of(a) for a in spans_of(exporter)] == [{}]
