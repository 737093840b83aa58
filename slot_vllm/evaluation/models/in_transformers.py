"""A run's model as transformers loads it."""

from typing import Any

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import bad_input
from slot_vllm.evaluation.models.catalog import path


def load(run: RunConfig, needed_by: str) -> Any:
    """In the engine's dtype, on CUDA where there is a GPU, in evaluation mode.

    Raises ConfigError for a model that transformers does not load.
    """
    import torch
    from transformers import AutoModelForCausalLM

    said = f"model={run.model!r}: {needed_by} needs it in transformers, which does not load it"
    with bad_input(said, OSError, ValueError, ImportError):
        model = AutoModelForCausalLM.from_pretrained(
            path(run.model),
            dtype=run.engine.get("dtype", "auto"),
            revision=run.engine.get("revision"),
            trust_remote_code=bool(run.engine.get("trust_remote_code", False)),
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
