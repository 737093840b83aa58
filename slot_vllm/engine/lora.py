"""Whether a LoRA adapter changes the head or the embeddings, which SLOT cannot see."""

import functools
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.lora.utils import get_adapter_absolute_path

_MODULES = ("lm_head", "embed_tokens")


def adapts_the_head(lora_request: Any) -> bool:
    """By the names of the adapter's tensors, which are what vLLM loads; an adapter whose names
    cannot be read counts as one that does."""
    return _adapts_the_head(lora_request.lora_path)


@functools.lru_cache(maxsize=256)
def _adapts_the_head(lora_path: str) -> bool:
    weights = Path(get_adapter_absolute_path(lora_path)) / "adapter_model.safetensors"
    if not weights.is_file():
        return True
    with safe_open(str(weights), framework="pt") as tensors:
        return any(part in _MODULES for name in tensors.keys() for part in name.split("."))  # noqa: SIM118
