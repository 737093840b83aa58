"""The endpoint plugin of vLLM, on only where ``VLLM_PLUGINS`` names it: ``GET /slot/stats``, and
``GET /slot/requests/{id}``, the receipts of a response, by the id that it shows.

Both give 501 where the engine runs without SLOT, and 503 where it does not answer.
"""

from argparse import Namespace
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request

from slot_vllm.engine.frontend.batched_rpc import BatchedRpc
from slot_vllm.engine.frontend.cached_rpc import ANSWER_SECONDS, CachedRpc
from slot_vllm.engine.frontend.metrics import ask_engines
from slot_vllm.engine.wire.engine_settings import asks_for_slot, read_config
from slot_vllm.engine.wire.receipt_dict import MOST_SECONDS, ReceiptDict
from slot_vllm.engine.wire.response_ids import place
from slot_vllm.validation_errors import shown

PATH = "/slot/stats"
RECEIPTS = "/slot/requests/"

T = TypeVar("T")


class StatsEndpoint:
    """See ``vllm.plugins.endpoint_plugins.interface.EndpointPlugin``."""

    name = "slot_stats"
    # SLOT is for generation; a server that only renders has no engine to ask.
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route(PATH, slot_stats, methods=["GET"])
        app.add_api_route(RECEIPTS + "{response_id}", slot_receipts, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        state.slot_stats = CachedRpc(lambda: _every_worker(engine_client))
        state.slot_receipts = BatchedRpc(lambda ids: _receipts(engine_client, ids))


async def slot_stats(request: Request) -> dict[str, list[dict[str, int | float]]]:
    """``slot_stats`` of each worker of each data-parallel engine, in the order of engines and
    ranks; from within the last second."""
    _require_slot(request, PATH)
    return {"workers": await _in_time(request.app.state.slot_stats.answer(), PATH)}


async def slot_receipts(response_id: str, request: Request) -> dict[str, list[ReceiptDict]]:
    """The receipts of the response's prompts, in their order. 404 where there are none."""
    vllm_config = _require_slot(request, RECEIPTS)
    kept = read_config(vllm_config).receipts
    if not kept:
        raise HTTPException(
            HTTPStatus.NOT_FOUND,
            f"{RECEIPTS}: this engine keeps no receipts; to keep those of the last 1000 requests: "
            """--additional-config '{"slot": {"receipts": 1000}}'""",
        )
    found = await _in_time(request.app.state.slot_receipts.answer(response_id), RECEIPTS)
    if not found:
        raise HTTPException(
            HTTPStatus.NOT_FOUND,
            f"{RECEIPTS}: no receipt of {shown(response_id)}: no response has this id, or its "
            f"prompt is not complete, or it finished over {MOST_SECONDS // 60} minutes or {kept} "
            "requests ago (slot.receipts)",
        )
    return {"receipts": found}


async def _every_worker(engine_client: Any) -> list[dict[str, int | float]]:
    answers = await ask_engines(engine_client, "slot_stats")
    return [
        {"engine": index, **stats}
        for index, workers in sorted(answers.items())
        for stats in workers
    ]


async def _receipts(engine_client: Any, response_ids: list[str]) -> dict[str, list[ReceiptDict]]:
    """By the ids of responses. A prompt is in one data-parallel engine, and every rank of that
    engine's last pipeline stage has its receipt."""
    engines = await ask_engines(engine_client, "slot_receipts", response_ids)
    return {
        name: sorted(
            (receipt for workers in engines.values() for receipt in workers[-1].get(name, ())),
            key=lambda receipt: place(receipt["request_id"]),
        )
        for name in response_ids
    }


def _require_slot(request: Request, path: str) -> Any:
    """The engine's configuration."""
    vllm_config = request.app.state.engine_client.vllm_config
    if not asks_for_slot(vllm_config):
        raise HTTPException(
            HTTPStatus.NOT_IMPLEMENTED,
            f"{path}: this engine was started without SLOT (--worker-extension slot_vllm)",
        )
    return vllm_config


async def _in_time(answer: Awaitable[T], path: str) -> T:
    try:
        return await answer
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{path}: the engine gave no answer within {ANSWER_SECONDS:g} s",
        ) from None
