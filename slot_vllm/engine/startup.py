"""What an engine asks for, and what can be refused before it starts."""

import os
import platform
from collections.abc import Mapping
from typing import Any

from vllm import envs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.import_utils import resolve_obj_by_qualname

from slot_vllm import __version__
from slot_vllm.engine import hidden_cache_choice
from slot_vllm.params import SlotConfig, SlotError

BARE_NAME = "slot_vllm"
EXTENSION = "slot_vllm.SlotWorkerExtension"
_KEY = "slot"
# Says that the front end's plugin, of this version, checked the engine and has admission in place.
_CHECKED = "slot_checked"


def mark(wrapper: Any) -> Any:
    """Mark a wrapper of ours, so that it is put on once; functools.wraps hands the mark on to
    wrappers that others put around it."""
    wrapper.slot_vllm_wrapper = True
    return wrapper


def is_wrapped(function: Any) -> bool:
    return hasattr(function, "slot_vllm_wrapper")


def asks_for_slot(vllm_config: Any) -> bool:
    """Whether the engine's worker extension is ours, under any name, or a subclass of ours."""
    name = vllm_config.parallel_config.worker_extension_cls
    if not name or name == EXTENSION:
        return bool(name)
    try:
        extension = resolve_obj_by_qualname(name)
    except (ImportError, AttributeError, ValueError):
        return False  # vLLM reports it
    # By name: importing our own class would wrap what other engines do not need.
    ours = ("slot_vllm.engine.worker", "SlotWorkerExtension")
    return any((c.__module__, c.__qualname__) == ours for c in getattr(extension, "__mro__", ()))


def read_config(vllm_config: Any) -> SlotConfig:
    """The settings that ``resolve_config`` wrote, in whatever process this is. Raises SlotError
    where it never ran, for then nothing would resolve the requests' settings either, and where the
    package that ran it is of another version, as it may be on another node."""
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping) or _CHECKED not in additional:
        raise SlotError(
            "the engine's worker extension is SLOT, but the plugin slot_vllm was not loaded where "
            "the engine was configured; if VLLM_PLUGINS is set, it must name slot_vllm"
        )
    if additional[_CHECKED] != __version__:
        raise SlotError(
            f"slot_vllm {additional[_CHECKED]} configured the engine, but on {platform.node()} "
            f"slot_vllm {__version__} is installed; every node needs the same version"
        )
    return SlotConfig.model_validate(additional[_KEY])


def names_settings(vllm_config: Any) -> bool:
    """Whether ``additional_config`` has settings for SLOT."""
    additional = vllm_config.additional_config
    return isinstance(additional, Mapping) and _KEY in additional


def resolve_config(vllm_config: Any) -> SlotConfig:
    """The engine's settings, written back so that every process reads the same ones; the caller's
    dict is left as it was. Raises SlotError."""
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping):
        raise SlotError(f"additional_config: a mapping is required, not {type(additional)}")
    config = SlotConfig.load(additional.get(_KEY), os.environ)
    config = hidden_cache_choice.choose(config, vllm_config)
    settings = config.model_dump(mode="json")
    vllm_config.additional_config = {**additional, _KEY: settings, _CHECKED: __version__}
    return config


def serves(usage_context: Any) -> bool:
    """Whether the engine is the OpenAI-compatible server's."""
    return bool(usage_context == UsageContext.OPENAI_API_SERVER)


def refuse_what_cannot_work(vllm_config: Any, usage_context: Any) -> None:
    """Raise SlotError for an engine that cannot serve SLOT at all: what vLLM refuses for prompt
    logprobs, and what this package does not do."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    reasons = {
        "the Rust front end (VLLM_USE_RUST_FRONTEND), whose requests pass no admission": (
            serves(usage_context) and envs.VLLM_USE_RUST_FRONTEND
        ),
        f"a {model.runner_type} model (only generative ones have a next-token loss)": (
            model.runner_type != "generate"
        ),
        "an encoder-decoder model": model.is_encoder_decoder,
        "a diffusion model": model.is_diffusion,
        "--kv-sharing-fast-prefill (it skips the prompt's hidden states)": (
            vllm_config.cache_config.kv_sharing_fast_prefill
        ),
        "--kv-transfer-config (prompts that arrive as KV blocks have no hidden states)": (
            vllm_config.kv_transfer_config is not None
        ),
        # Neither is there before 0.28.
        "batch-sharded sampling": getattr(parallel, "enable_batch_sharded_sampling", False),
        "adaptive verification of drafts": (
            getattr(speculative, "enable_adaptive_verification", False)
        ),
        **{
            f"{name} {getattr(parallel, name)} (allowed: 1)": getattr(parallel, name) != 1
            for name in (
                "prefill_context_parallel_size",
                "decode_context_parallel_size",
            )
        },
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise SlotError(f"SLOT cannot work with {'; '.join(found)}")
