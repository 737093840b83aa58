"""Whether a LoRA adapter changes the head or the embeddings, which SLOT cannot see."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.lora.utils import get_adapter_absolute_path

_MODULES = ("lm_head", "embed_tokens")


def changes_the_head(lora_request: Any) -> bool:
    """By the names of the adapter's tensors, which are what vLLM loads. An adapter whose names
    cannot be read counts as one that changes the head."""
    try:
        path = get_adapter_absolute_path(lora_request.lora_path)
        weights = Path(path) / "adapter_model.safetensors"
        return _names_the_head(str(weights), weights.stat().st_mtime_ns)
    except Exception:  # whatever a file system or a damaged file may raise
        return True


@lru_cache(1024)
def _names_the_head(weights: str, _changed: int) -> bool:
    """_changed: when; an adapter may be replaced in place."""
    with safe_open(weights, framework="pt") as tensors:
        names = list(tensors.keys())
    return any(part in _MODULES for name in names for part in name.split("."))
