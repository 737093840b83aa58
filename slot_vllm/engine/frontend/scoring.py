"""Endpoints that score texts: SLOT adapts answers, not scores, so their requests have no SLOT."""

import importlib
from collections.abc import Callable, Container
from functools import partial
from operator import attrgetter
from typing import Any

from vllm.exceptions import VLLMValidationError

from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.vllm_contract.server import SCORING_ENDPOINTS
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.params import named


def check_scoring(request: Any) -> None:
    """Raise VLLMValidationError if a request to one of these endpoints names a setting."""
    beside = request.model_extra or {}
    keys = [*named(beside), *named(beside.get("vllm_xargs"))]
    if keys:
        raise VLLMValidationError(
            f"{', '.join(keys)}: SLOT adapts answers, and this endpoint scores; allowed: no slot_* "
            "key"
        )


def install(absent: Container[str] = ()) -> None:
    """From now on the endpoints of SLOT engines submit requests that have no SLOT. Idempotent.
    absent: modules that this release does not have."""
    for endpoint, engine in SCORING_ENDPOINTS.items():
        if endpoint.path in absent:
            continue
        try:
            module = importlib.import_module(endpoint.path)
        except ModuleNotFoundError:
            if endpoint.optional:
                continue
            raise
        class_name, _, method = endpoint.name.partition(".")
        wrap(getattr(module, class_name), method)(partial(_scored, attrgetter(engine)))


async def _scored(
    engine_of: Callable[[Any], Any],
    original: Any,
    self: Any,
    request: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if getattr(engine_of(self).input_processor, "slot_admission", None) is None:
        return await original(self, request, *args, **kwargs)
    check_scoring(request)
    with submitting(Origin("scoring")):
        return await original(self, request, *args, **kwargs)
