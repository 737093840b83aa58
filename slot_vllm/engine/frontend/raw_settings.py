"""Keeps SLOT's settings in vLLM's request models as the client sent them.

The field ``vllm_xargs`` turns a JSON ``true`` into 1. Without an HTTP request to look at (``vllm
run-batch``, callers of the serving methods) that would pass for a number that was asked for.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from slot_vllm.params import named


def _as_sent(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    validated = validate(value)
    return {**validated, **named(value)} if isinstance(value, Mapping) else validated


_KEEP = WrapValidator(_as_sent)


def install() -> None:
    """From now on each request model keeps the values of ``slot_*`` keys, whose types admission
    judges; what fits none of the field's types is still refused. Idempotent."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for model in (
        AnthropicMessagesRequest,
        ChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
    ):
        field = model.model_fields.get("vllm_xargs")
        # Anthropic's has none in releases that take no such settings there.
        if field is not None and _KEEP not in field.metadata:
            field.metadata.append(_KEEP)
            model.model_rebuild(force=True)
