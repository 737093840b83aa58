"""A request as admission gets it."""

from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams


def unadmitted(sampling_params: SamplingParams | None = None, **changes: Any) -> Any:
    values = {
        "prompt_token_ids": [1, 2, 3],
        "mm_features": None,
        "prompt_embeds": None,
        "resumable": False,
        "lora_request": None,
        "cache_salt": None,
        "sampling_params": sampling_params or SamplingParams(),
    }
    return SimpleNamespace(**{**values, **changes})
