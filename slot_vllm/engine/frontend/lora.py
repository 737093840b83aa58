"""Whether a LoRA adapter changes the head or the embeddings, which SLOT cannot see."""

from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.lora.utils import get_adapter_absolute_path

_MODULES = ("lm_head", "embed_tokens")


class HeadAdapters:
    """Remembers what it found by path and time of change: an adapter may be replaced in place."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], bool] = {}

    def contain(self, lora_request: Any) -> bool:
        """By the names of the adapter's tensors, which are what vLLM loads. An adapter whose names
        cannot be read counts as one that changes the head."""
        path = lora_request.lora_path
        try:
            weights = Path(get_adapter_absolute_path(path)) / "adapter_model.safetensors"
            key = (path, weights.stat().st_mtime_ns)
            if key not in self._found:
                self._found[key] = _names_the_head(weights)
            return self._found[key]
        except Exception:  # whatever a file system or a damaged file may raise
            return True


def _names_the_head(weights: Path) -> bool:
    with safe_open(str(weights), framework="pt") as tensors:
        names = list(tensors.keys())
    return any(part in _MODULES for name in names for part in name.split("."))
