"""What two prompts must have in common to have the same delta."""

import hashlib
from typing import Any

import numpy as np

from slot_vllm.params import SHARING, SlotParams


def prompt_key(
    tokens: list[int],
    skipped: int,
    params: SlotParams,
    lora_request: Any,
    cache_salt: str | None,
    epoch: tuple[int, int],
) -> bytes:
    """What determines a delta: 32 bytes, a SHA-256. skipped: how many of the first tokens are not
    learned from. epoch: of the weights, and of the adapter's."""
    lora = None
    if lora_request is not None:
        lora = (lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path)
    learning = params.model_dump_json(exclude=set(SHARING))
    settings = (len(tokens), skipped, learning, lora, cache_salt, epoch)
    key = hashlib.sha256(repr(settings).encode())
    key.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return key.digest()
