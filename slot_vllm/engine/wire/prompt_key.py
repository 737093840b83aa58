"""What two prompts must have in common to have the same delta."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from slot_vllm.params import SHARING, SlotParams


def images_of(request: Any) -> list[tuple[str, int]]:
    """What a request's prompt has besides tokens, by the name under which vLLM's prefix cache
    knows it, and where it begins."""
    return [(f.identifier, f.mm_position.offset) for f in request.mm_features or ()]


def prompt_key(
    tokens: list[int],
    skipped: int,
    params: SlotParams,
    lora_request: Any,
    cache_salt: str | None,
    epoch: tuple[int, int],
    images: Sequence[tuple[str, int]] = (),
) -> bytes:
    """What determines a delta: 32 bytes, a SHA-256. skipped: how many of the first tokens are not
    learned from. epoch: of the weights, and of the adapter's. images: see ``images_of``."""
    lora = None
    if lora_request is not None:
        lora = (lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path)
    learning = params.model_dump_json(exclude=set(SHARING))
    settings = (len(tokens), skipped, learning, lora, cache_salt, epoch, tuple(images))
    key = hashlib.sha256(repr(settings).encode())
    key.update(np.asarray(tokens, dtype=np.int64).tobytes())
    return key.digest()
