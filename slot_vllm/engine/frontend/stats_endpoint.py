"""The endpoint plugin of vLLM, on only where ``VLLM_PLUGINS`` names it; its ``GET /slot/stats``.

Its other route is ``receipts_endpoint``'s.
"""

from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request

from slot_vllm.engine.frontend import receipts_endpoint
from slot_vllm.engine.frontend.cached_rpc import CachedRpc
from slot_vllm.engine.frontend.endpoint import in_time, require_slot
from slot_vllm.engine.frontend.metrics import ask_engines

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
        state.slot_stats = CachedRpc(lambda: _every_worker(engine_client))
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
    require_slot(engine_client.vllm_config, PATH)
    return {"workers": await in_time(request.app.state.slot_stats.answer(), PATH)}
