"""Whether an engine keeps hidden states in its KV cache.

Admission, in the front end's process, lets SLOT requests read the prefix cache only if the workers
keep hidden states beside it. So that both agree, the choice is made once, from vLLM's configuration
alone, where the engine is configured; ``resolve_config`` writes it where every process reads it.
"""

import logging
from typing import Any

from vllm import envs

from slot_vllm.engine.vllm_contract import release
from slot_vllm.params import SlotConfig, SlotError

logger = logging.getLogger("vllm.slot_vllm")

_DRAFTS_WITHOUT_LAYERS = ("ngram", "ngram_gpu", "suffix")
# Those in which layers with pages of another shape cannot share a block.
_LOOSE_LAYOUTS = ("LHBNC", "BHLNC")


def choose(config: SlotConfig, vllm_config: Any) -> SlotConfig:
    """``config`` with ``auto`` resolved to ``on`` or ``off``. Raises SlotError for an ``on`` that
    cannot be."""
    if config.hidden_cache == "off":
        return config
    obstacle = _obstacle(vllm_config)
    if config.hidden_cache == "on":
        if obstacle is not None:
            raise SlotError(
                f"slot.hidden_cache='on': hidden states cannot be kept in the KV cache with "
                f"{obstacle}; allowed: 'auto', 'off'"
            )
        return config
    if obstacle is None and not vllm_config.cache_config.enable_prefix_caching:
        obstacle = "prefix caching off, which leaves nothing to gain"
    if obstacle is not None:
        logger.info(
            "SLOT keeps no hidden states in the KV cache, and its requests do not read the prefix "
            "cache: hidden_cache is auto, and the engine has %s",
            obstacle,
        )
    return config.model_copy(update={"hidden_cache": "off" if obstacle else "on"})


def _obstacle(vllm_config: Any) -> str | None:
    """Why not; None if every layer that has a KV cache has full attention, so that one block table
    with all the prompt's blocks serves them and the hidden states alike."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    text = model.hf_text_config
    speculative = vllm_config.speculative_config
    layer_types = set(getattr(text, "layer_types", None) or ())
    local = sorted(layer_types - {"full_attention"})
    lacking = release.missing_in(release.installed(), "hidden-state cache")
    reasons = {
        "a KV connector, which brings no hidden states": (
            vllm_config.kv_transfer_config is not None
        ),
        f"a vLLM in which {release.describe(lacking)}": bool(lacking),
        f"the quantized KV cache dtype {cache.cache_dtype}": (
            cache.cache_dtype not in ("auto", "bfloat16", "float16", "float32")
        ),
        f"VLLM_KV_CACHE_LAYOUT={envs.VLLM_KV_CACHE_LAYOUT}": (
            envs.VLLM_KV_CACHE_LAYOUT in _LOOSE_LAYOUTS
        ),
        "sparse attention": hasattr(text, "index_topk"),
        "a model with state layers (Mamba and the like)": model.is_hybrid or model.has_inner_state,
        "a model without attention": model.is_attention_free,
        f"layers that are not full attention ({', '.join(local)})": bool(local),
        "sliding-window attention": not layer_types and model.get_sliding_window() is not None,
        "chunked local attention": model.attention_chunk_size is not None,
        "a draft model, which has a KV cache of its own": (
            speculative is not None and speculative.method not in _DRAFTS_WITHOUT_LAYERS
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
