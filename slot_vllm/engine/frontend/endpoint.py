"""What the routes of the endpoint plugin have in common."""

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import HTTPException

from slot_vllm.engine.frontend.cached_rpc import ANSWER_SECONDS
from slot_vllm.engine.wire.engine_settings import asks_for_slot

T = TypeVar("T")


def require_slot(vllm_config: Any, path: str) -> None:
    """501 where the engine runs without SLOT."""
    if not asks_for_slot(vllm_config):
        raise HTTPException(
            HTTPStatus.NOT_IMPLEMENTED,
            f"{path}: this engine was started without SLOT (--worker-extension slot_vllm)",
        )


async def in_time(answer: Awaitable[T], path: str) -> T:
    """503 where the engine does not answer."""
    try:
        return await answer
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{path}: the engine gave no answer within {ANSWER_SECONDS:g} s",
        ) from None
