"""What an engine asks for, and what can be refused before it starts."""

import os
from collections.abc import Mapping
from typing import Any

from vllm import envs

from slot_vllm import __version__
from slot_vllm.engine.frontend import hidden_cache_choice
from slot_vllm.engine.wire.engine_settings import ADMIT_IN_CORE, CHECKED, EXTENSION, SETTINGS
from slot_vllm.params import SlotConfig, SlotError

BARE_NAME = "slot_vllm"


def refuse_settings(vllm_config: Any) -> None:
    """Raise SlotError for those of an engine that does not ask for SLOT."""
    additional = vllm_config.additional_config
    if isinstance(additional, Mapping) and SETTINGS in additional:
        raise SlotError(
            'additional_config["slot"] is set but the engine does not ask for SLOT: its worker '
            f"extension is {vllm_config.parallel_config.worker_extension_cls or None!r}; "
            f'add --worker-extension {BARE_NAME} (in Python: worker_extension_cls="{EXTENSION}")'
        )


def resolve_config(vllm_config: Any, in_core: bool = False) -> SlotConfig:
    """The engine's settings, written back so that every process reads the same ones; the caller's
    dict is left as it was. in_core: whether the engine core admits the requests. Raises
    SlotError."""
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping):
        raise SlotError(f"additional_config: a mapping is required, not {type(additional)}")
    config = SlotConfig.load(additional.get(SETTINGS), os.environ)
    config = hidden_cache_choice.choose(config, vllm_config)
    settings = config.model_dump(mode="json")
    written = {SETTINGS: settings, CHECKED: __version__, ADMIT_IN_CORE: in_core}
    vllm_config.additional_config = {**additional, **written}
    return config


def is_rust(engine_args: Any, headless: bool) -> bool:
    """Whether the engine's requests come from vLLM's Rust front end: of other servers than
    ``vllm serve`` vLLM reads the variable in vain."""
    # -1: the process that starts front ends and engines, and is neither.
    starts_one = headless or engine_args._api_process_rank == -1
    return starts_one and bool(envs.VLLM_USE_RUST_FRONTEND)


def refuse_what_cannot_work(vllm_config: Any) -> None:
    """Raise SlotError for an engine that cannot serve SLOT at all: what vLLM refuses for prompt
    logprobs, and what this package does not do."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    reasons = {
        f"a {model.runner_type} model (only generative ones have a next-token loss)": (
            model.runner_type != "generate"
        ),
        "an encoder-decoder model": model.is_encoder_decoder,
        "a diffusion model": model.is_diffusion,
        "--kv-sharing-fast-prefill (it skips the prompt's hidden states)": (
            vllm_config.cache_config.kv_sharing_fast_prefill
        ),
        "adaptive verification of drafts": (
            speculative is not None and speculative.enable_adaptive_verification
        ),
        **{
            f"{name} {getattr(parallel, name)} (allowed: 1)": getattr(parallel, name) != 1
            for name in ("prefill_context_parallel_size", "decode_context_parallel_size")
        },
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise SlotError(f"SLOT cannot work with {'; '.join(found)}")
