"""SLOT in a vLLM that was patched with one of ``patches/``: what its hooks call.

The patch puts calls where the plugin wraps methods at run time. Both end in the same functions of
this package; where the hooks are there, the plugin wraps nothing. ``vllm.slot_hooks``, which the
patch adds, imports this module for an engine that may ask for SLOT: with settings for it, or with
any worker extension, which may be a subclass of ours.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from slot_vllm.engine import compat
from slot_vllm.engine.hooks import HOOKS
from slot_vllm.params import SlotError

# Of the hooks: a patch and a package that do not belong together are told apart by it.
VERSION = 4


@cache
def available() -> bool:
    """Whether this vLLM is patched. Raises SlotError if it is so in part only, or for another
    version of SLOT. To be asked for an engine that asks for SLOT."""
    spec = find_spec("vllm.slot_hooks")
    if spec is None:
        return False
    found = import_module("vllm.slot_hooks").VERSION
    if found != VERSION:
        raise SlotError(
            f"this vLLM was patched for version {found} of SLOT's hooks, and this is {VERSION}; "
            "revert the patch with the scripts/patch_vllm.sh that applied it, and apply that of "
            "this version"
        )
    missing = compat.lacking_in(compat.installed(), HOOKS)
    if missing:
        raise SlotError(
            f"this vLLM has SLOT's {spec.origin}, but not all hunks of the patch: "
            f"{compat.describe(missing)}. An upgrade or a reinstall of vLLM leaves that file "
            "behind. Say `bash scripts/patch_vllm.sh revert`, and apply if the patch is wanted; "
            "for a release without one, delete the file"
        )
    return True


def configures(create_engine_config: Callable[..., Any]) -> bool:
    """Whether a start-up function has the hook that calls ``configured``."""
    code = getattr(inspect.unwrap(create_engine_config), "__code__", None)
    return code is not None and "configured" in code.co_names


@dataclass(frozen=True)
class LogitsHook:
    """What a patched ``LogitsProcessor`` finds as ``slot_hook``.

    take(): this step's additions, or None. logits(additions, lm_head, hidden_states, ...): what its
    forward returns then.
    """

    take: Callable[[], Any]
    logits: Callable[..., Any]


def before_configuration(arguments: Any) -> None:
    """Of ``EngineArgs.create_engine_config``: expands the bare name."""
    from slot_vllm.engine import plugin

    plugin.expand(arguments)


def configured(vllm_config: Any, usage_context: Any) -> None:
    """At its end: refuses what cannot work and resolves the settings. Raises SlotError."""
    from slot_vllm.engine import plugin

    plugin.configure(vllm_config, usage_context)


def admission(vllm_config: Any, processor: Any) -> Any:
    """Of ``InputProcessor.__init__``: the admission of an engine that asks for SLOT, else None."""
    from slot_vllm.engine.startup import asks_for_slot

    if not asks_for_slot(vllm_config):
        return None
    from slot_vllm.engine.admission import admission_of

    return admission_of(processor, vllm_config)


async def check_entry(admission: Any, request: Any, raw_request: Any) -> None:
    """Of the server's ``create_*`` methods. Raises VLLMValidationError."""
    from slot_vllm.engine import server

    await server.check_entry(admission, request, raw_request)


def check_inputs(admission: Any, inputs: Any, params: Any, lora_request: Any) -> None:
    """Of ``_log_inputs``. Raises VLLMValidationError."""
    from slot_vllm.engine import server

    server.check_inputs(admission, inputs, params, lora_request)


def check_generation(admission: Any, inputs: Any, params: Any, lora_request: Any) -> None:
    """Of ``_create_responses``. Raises VLLMValidationError."""
    from slot_vllm.engine import server

    server.check_generation(admission, inputs, params, lora_request)


def of_beam_search(prompts: int) -> dict[str, Any]:
    """The extra_args of the requests of a beam search."""
    from slot_vllm.engine import beam_search, origins

    return {origins.MARK: beam_search.search(prompts)}


def check_scoring(request: Any) -> None:
    """Of the methods that score. Raises VLLMValidationError."""
    from slot_vllm.engine import scoring

    scoring.check_scoring(request)


def mark_scoring(sampling_params: Iterable[Any]) -> None:
    """Of ``next_token_label_reads``, which submits their requests with these parameters."""
    from slot_vllm.engine import origins, scoring

    origin = scoring.scores()
    for params in sampling_params:
        params.extra_args = {**(params.extra_args or {}), origins.MARK: origin}


def extend_metrics(app: Any) -> None:
    """Of ``attach_router`` of ``/metrics``."""
    from slot_vllm.engine import metrics

    metrics.extend(app)


def span_attributes(resolved: Any) -> dict[str, str | int | float]:
    """Of ``OutputProcessor.do_tracing``: what the span of a request says, by what admission
    resolved."""
    from slot_vllm.engine import tracing

    return tracing.span_attributes(resolved)
