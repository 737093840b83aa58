"""Checks of the OpenAI-compatible server, made before a response is started.

For a streaming request the error of ``process_inputs`` comes only after the 200 header is out, and
pydantic has made integers of JSON booleans by then.
"""

import functools
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from slot_vllm.engine.frontend.admission import AcceptedDict, Admission
from slot_vllm.engine.vllm_contract.wraps import over, wrap
from slot_vllm.engine.wire.engine_settings import asks_for_slot
from slot_vllm.params import named

# The methods that answer a request, of whichever serving class has them. All but the last take
# `vllm_xargs`; that one takes vLLM's own sampling parameters.
_ENTRIES = (
    "create_chat_completion",
    "create_batch_chat_completion",
    "create_completion",
    "create_responses",
    "create_messages",
    "serve_tokens",
)


def install() -> None:
    """From now on each new serving object of a SLOT engine checks its requests. Idempotent."""
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing

    @wrap(GenerateBaseServing, "__init__")
    def initialize(original: Any, self: Any, engine_client: Any, *args: Any, **kwargs: Any) -> None:
        original(self, engine_client, *args, **kwargs)
        if asks_for_slot(engine_client.vllm_config):
            _hook(self, engine_client.input_processor.slot_admission)


def _hook(serving: Any, admission: Admission) -> None:
    for name in _ENTRIES:
        if hasattr(serving, name):
            over(serving, name)(functools.partial(_checked, admission))

    @over(serving, "_log_inputs")
    def log_inputs(
        original: Any,
        request_id: str,
        inputs: Any,
        params: Any,
        lora_request: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        check_inputs(admission, inputs, params, lora_request)
        return original(request_id, inputs, params, lora_request, *args, **kwargs)

    if not hasattr(serving, "_generate_with_builtin_tools"):
        return

    # /v1/responses calls _log_inputs only once the response has begun, for the prompt of each tool
    # call. Not async, so that it raises before the generator starts.
    @over(serving, "_generate_with_builtin_tools")
    def generate(original: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs["engine_input"], kwargs["sampling_params"], kwargs["lora_request"]
        check_generation(admission, *given)
        return original(*args, **kwargs)


async def _checked(
    admission: Admission,
    entry: Any,
    request: Any,
    raw_request: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    await check_entry(admission, request, raw_request)
    return await entry(request, raw_request, *args, **kwargs)


async def check_entry(admission: Admission, request: Any, raw_request: Any) -> None:
    """Check a request as the client sent it. Raises VLLMValidationError."""
    settings = getattr(request, "vllm_xargs", None)
    outside: Any = getattr(request, "model_extra", None) or {}
    if raw_request is not None:
        body = await raw_request.json()
        outside = body if isinstance(body, dict) else {}
        settings = outside.get("vllm_xargs")
    within = named(settings)
    if isinstance(getattr(request, "sampling_params", None), SamplingParams):
        # ``check_inputs`` reads those.
        _refuse_beside("sampling_params.extra_args", {**named(outside), **within})
        return
    _refuse_beside("vllm_xargs", named(outside))
    # What another protocol's request is turned into has none of its own.
    if within and getattr(request, "vllm_xargs", within) is None:
        raise VLLMValidationError(
            f"{', '.join(within)}: this endpoint takes no vllm_xargs; one that does is "
            "/v1/chat/completions"
        )
    # The parameters of a beam search do not carry these settings any further.
    beams = getattr(request, "use_beam_search", False)
    admission.check(settings, "beam_search" if beams else None)


def _refuse_beside(place: str, settings: dict[str, Any]) -> None:
    if settings:
        raise VLLMValidationError(
            f"{', '.join(settings)}: settings of SLOT stand in {place}, not beside it"
        )


def check_inputs(admission: Admission, inputs: Any, params: Any, lora_request: Any) -> None:
    """Check a request in the last call before generation starts, which has the prompt, its settings
    and its adapter. Raises VLLMValidationError."""
    if isinstance(params, SamplingParams) and isinstance(inputs, dict):
        reason = admission.obstacle(
            embeddings=inputs.get("type") == "embeds",
            resumable=False,
            lora_request=lora_request,
            prompt_tokens=len(inputs.get("prompt_token_ids") or ()),
        )
        settings, bypassed = admission.check(params.extra_args, reason)
        if bypassed is None:
            admission.spans(params.extra_args, settings, inputs.get("prompt_token_ids", ()))


def check_generation(admission: Admission, inputs: Any, params: Any, lora_request: Any) -> None:
    """``check_inputs`` of a request's first prompt. Its later ones, which tool calls make, are
    served without SLOT where they cannot have it. Raises VLLMValidationError."""
    check_inputs(admission, inputs, params, lora_request)
    params.extra_args = AcceptedDict(params.extra_args or {})
