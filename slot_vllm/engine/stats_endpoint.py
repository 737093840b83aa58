"""The endpoint plugin of vLLM, on only where ``VLLM_PLUGINS`` names it; its ``GET /slot/stats``.

Its other route is ``receipts_endpoint``'s.
"""

from argparse import Namespace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from slot_vllm.engine import receipts_endpoint
from slot_vllm.engine.coalesced import ANSWER_SECONDS, Coalesced
from slot_vllm.engine.metrics import ask_engines
from slot_vllm.engine.startup import asks_for_slot

PATH = "/slot/stats"


class StatsEndpoint:
    """See ``vllm.plugins.endpoint_plugins.interface.EndpointPlugin``."""

    name = "slot_stats"
    # SLOT is for generation; a server that only renders has no engine to ask.
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route(PATH, slot_stats, methods=["GET"])
        path, receipts = receipts_endpoint.PATH, receipts_endpoint.slot_receipts
        app.add_api_route(path, receipts, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        state.slot_stats = Coalesced(lambda: _every_worker(engine_client))
        state.slot_receipts = receipts_endpoint.receipts_of(engine_client)


async def _every_worker(engine_client: Any) -> list[dict[str, int | float]]:
    answers = await ask_engines(engine_client, "slot_stats")
    return [
        {"engine": index, **stats}
        for index, workers in sorted(answers.items())
        for stats in workers
    ]


async def slot_stats(request: Request) -> dict[str, list[dict[str, int | float]]]:
    """``slot_stats`` of each worker of each data-parallel engine, in the order of engines and
    ranks; from within the last second. 501 where the engine runs without SLOT, 503 where it does
    not answer."""
    engine_client = request.app.state.engine_client
    if not asks_for_slot(engine_client.vllm_config):
        raise HTTPException(
            HTTPStatus.NOT_IMPLEMENTED,
            f"{PATH}: this engine was started without SLOT (--worker-extension slot_vllm)",
        )
    try:
        return {"workers": await request.app.state.slot_stats.answer()}
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{PATH}: the engine gave no answer within {ANSWER_SECONDS:g} s",
        ) from None
