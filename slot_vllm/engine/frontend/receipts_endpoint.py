"""``GET /slot/requests/{id}``: the receipts of a response, by the id that it shows."""

from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request

from slot_vllm.engine.frontend.batched_rpc import BatchedRpc
from slot_vllm.engine.frontend.endpoint import in_time, require_slot
from slot_vllm.engine.frontend.metrics import ask_engines
from slot_vllm.engine.wire.engine_settings import read_config
from slot_vllm.engine.wire.receipt_dict import MOST_SECONDS, ReceiptDict
from slot_vllm.engine.wire.response_ids import place
from slot_vllm.validation_errors import shown

PATH = "/slot/requests/{response_id}"
_HERE = PATH.partition("{")[0]


def receipts_of(engine_client: Any) -> BatchedRpc[list[ReceiptDict]]:
    """Receipts by the ids of responses. A prompt is in one data-parallel engine, and every rank of
    that engine's last pipeline stage has its receipt."""

    async def ask(response_ids: list[str]) -> dict[str, list[ReceiptDict]]:
        engines = await ask_engines(engine_client, "slot_receipts", response_ids)
        found: dict[str, list[ReceiptDict]] = {name: [] for name in response_ids}
        for workers in engines.values():
            for name, receipts in workers[-1].items():
                found[name] += receipts
        return {
            name: sorted(own, key=lambda receipt: place(receipt["request_id"]))
            for name, own in found.items()
        }

    return BatchedRpc(ask)


async def slot_receipts(response_id: str, request: Request) -> dict[str, list[ReceiptDict]]:
    """The receipts of the response's prompts, in their order. 404 where there are none, 501 where
    the engine runs without SLOT, 503 where it does not answer."""
    vllm_config = request.app.state.engine_client.vllm_config
    require_slot(vllm_config, _HERE)
    kept = read_config(vllm_config).receipts
    if not kept:
        raise HTTPException(
            HTTPStatus.NOT_FOUND,
            f"{_HERE}: this engine keeps no receipts; to keep those of the last 1000 requests: "
            """--additional-config '{"slot": {"receipts": 1000}}'""",
        )
    found = await in_time(request.app.state.slot_receipts.answer(response_id), _HERE)
    if not found:
        raise HTTPException(
            HTTPStatus.NOT_FOUND,
            f"{_HERE}: no receipt of {shown(response_id)}: no response has this id, or its prompt "
            f"is not complete, or it finished over {MOST_SECONDS // 60} minutes or {kept} requests "
            "ago (slot.receipts)",
        )
    return {"receipts": found}
