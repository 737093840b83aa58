"""Hidden states in the KV cache."""

from functools import partial

from slot_vllm.engine.vllm_contract.contact import Contact

_KEEPS = "vLLM keeps last hidden states for whoever asks"
_cache = partial(Contact, "hidden-state cache")
_layer = partial(Contact, "hidden-state cache", "vllm.model_executor.models.extract_hidden_states")
_v1_cache = partial(Contact, "hidden-state cache, V1 runner")
_v2_cache = partial(Contact, "hidden-state cache, V2 runner")

HIDDEN_CACHE: tuple[Contact, ...] = (
    _cache(
        "vllm.v1.kv_cache_interface", "HiddenStateCacheSpec",
        "how vLLM lays out a cache of hidden states",
    ),
    _layer(
        "CacheOnlyAttentionLayer.__init__", "the layer that has the cache",
        takes="num_heads, head_size, cache_config, prefix, ...",
    ),
    _layer(
        "CacheOnlyAttentionLayer", "the layer that has the cache",
        attributes="kv_cache get_attn_backend get_kv_cache_spec", until=_KEEPS,
    ),
    _layer(
        "CacheOnlyAttentionLayer.get_kv_cache_spec", "lies beside the attention layers",
        calls="HiddenStateCacheSpec",
    ),
    _layer(
        "CacheOnlyAttentionBackend", "allows CUDA graphs",
        attributes="forward_includes_kv_cache_update get_builder_cls",
    ),
    _layer(
        "CacheOnlyAttentionMetadataBuilder.build", "allows CUDA graphs",
        takes="common_prefix_len, common_attn_metadata, fast_build", until=_KEEPS,
    ),
    _layer("CacheOnlyAttentionMetadata.__init__", "allows CUDA graphs", takes="slot_mapping"),
    _layer(
        "basic_cache", "writes the rows, laid out as they are read",
        takes="to_cache, kv_cache, slot_mapping",
        contains=("kv_cache[slot_mapping // block_size, :, slot_mapping % block_size]",),
    ),
    _cache(
        "vllm.v1.attention.backend", "AttentionCGSupport", "allows CUDA graphs",
        attributes="ALWAYS",
    ),
    _cache("vllm.config", "set_current_vllm_config", "makes the layer", takes="vllm_config, ..."),
    _cache("vllm.config", "get_current_vllm_config", "makes the layer"),
    _cache(
        "vllm.config", "CompilationConfig", "registers the layer",
        attributes="static_forward_context",
    ),
    _cache(
        "vllm.v1.kv_cache_interface", "KVCacheConfig", "finds the layer's blocks",
        attributes="kv_cache_groups num_blocks",
    ),
    _cache(
        "vllm.v1.kv_cache_interface", "KVCacheGroupSpec", "finds the layer's blocks",
        attributes="layer_names kv_cache_spec",
    ),
    _v1_cache(
        "vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "the V1 runner's blocks",
        attributes="kv_cache_config",
    ),
    _v1_cache(
        "vllm.v1.worker.gpu_input_batch", "InputBatch", "the V1 runner's blocks",
        attributes="block_table",
    ),
    _v1_cache(
        "vllm.v1.worker.block_table", "BlockTable", "the V1 runner's blocks",
        attributes="slot_mapping block_table block_size",
    ),
    _v2_cache(
        "vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "the V2 runner's blocks",
        attributes="kv_cache_config block_tables",
    ),
    _v2_cache(
        "vllm.v1.worker.gpu.block_table", "BlockTables", "the V2 runner's blocks",
        attributes="slot_mappings block_tables block_sizes",
    ),
)  # fmt: skip
