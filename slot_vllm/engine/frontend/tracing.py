"""SLOT's settings as attributes of vLLM's own request spans.

A span is made in the front end when its request ends. What the front end knows of SLOT is what
admission decided; whether a delta was learned or shared is known to the workers only.
"""

from contextvars import ContextVar
from typing import Any

from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.resolved import RESOLVED, ResolvedDict, read_resolved

Attributes = dict[str, str | int | float]

# Of the request whose span is being made.
_attributes: ContextVar[Attributes | None] = ContextVar("slot_vllm_span", default=None)


def span_attributes(value: Any) -> Attributes:
    """value: a request's ``RESOLVED``. Nothing for requests that passed no admission, as those of
    engines without SLOT."""
    if not isinstance(value, ResolvedDict):
        return {}
    resolved = read_resolved(value)
    if resolved.bypassed is not None:
        return {"slot.outcome": "bypassed", "slot.bypassed_reason": resolved.bypassed}
    if not resolved.params.steps:
        return {"slot.outcome": "plain"}
    return {
        "slot.outcome": "admitted",
        "slot.steps": resolved.params.steps,
        "slot.lr": resolved.params.lr,
        "slot.rounding": resolved.params.rounding,
    }


def install() -> None:
    """From now on request spans carry the attributes. Idempotent."""
    from vllm.v1.engine import output_processor

    @wrap(output_processor.RequestState, "from_new_request")
    def from_new_request(original: Any, *args: Any, request: Any, **kwargs: Any) -> Any:
        state = original(*args, request=request, **kwargs)
        # All that stays of a request on this side of the engine.
        extra_args = getattr(request.sampling_params, "extra_args", None) or {}
        state.slot_span_attributes = span_attributes(extra_args.get(RESOLVED))
        return state

    @wrap(output_processor.OutputProcessor, "do_tracing")
    def do_tracing(
        original: Any, self: Any, engine_core_output: Any, req_state: Any, iteration_stats: Any
    ) -> None:
        token = _attributes.set(getattr(req_state, "slot_span_attributes", None))
        try:
            original(self, engine_core_output, req_state, iteration_stats)
        finally:
            _attributes.reset(token)

    @wrap(output_processor, "instrument_manual")
    def instrument_manual(original: Any, *args: Any, attributes: Any = None, **kwargs: Any) -> Any:
        own = _attributes.get() or {}
        return original(*args, attributes={**(attributes or {}), **own}, **kwargs)
