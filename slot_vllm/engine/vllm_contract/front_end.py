"""Start-up and admission, in every front end."""

from functools import partial

from slot_vllm.engine.vllm_contract.contact import ADMISSION, Contact

_rust = partial(Contact, "Rust front end")
_front_end = partial(Contact, "front end")
_config = partial(Contact, "front end", "vllm.config")
_processor = partial(Contact, "front end", "vllm.v1.engine.input_processor")

FRONT_END: tuple[Contact, ...] = (
    # Start-up.
    _front_end(
        "vllm.engine.arg_utils", "EngineArgs.create_engine_config",
        "expands the bare name, refuses what cannot work, resolves the settings",
        takes="usage_context, headless, ...",
        until="worker extensions get a hook for the configuration",
    ),
    _front_end(
        "vllm.engine.arg_utils", "EngineArgs",
        "the name of the worker extension, and whether it is the Rust front end's engine",
        attributes="worker_extension_cls _api_process_rank",
    ),
    _config(
        "VllmConfig", "what an engine is configured for",
        attributes=(
            "additional_config model_config cache_config parallel_config speculative_config "
            "kv_transfer_config scheduler_config observability_config"
        ),
    ),
    _config(
        "ParallelConfig", "what is asked for and what is refused",
        attributes=(
            "worker_extension_cls tensor_parallel_size pipeline_parallel_size data_parallel_size "
            "prefill_context_parallel_size decode_context_parallel_size"
        ),
    ),
    _config(
        "ModelConfig", "which models are refused",
        attributes=(
            "runner_type is_encoder_decoder is_diffusion hf_text_config is_hybrid has_inner_state "
            "is_attention_free get_sliding_window attention_chunk_size"
        ),
    ),
    _config(
        "CacheConfig", "what is refused; whether prefixes are cached",
        attributes="kv_sharing_fast_prefill enable_prefix_caching cache_dtype",
    ),
    _config(
        "SpeculativeConfig", "which drafts are refused",
        attributes="method enable_adaptive_verification",
    ),
    _front_end("vllm.envs", "VLLM_USE_RUST_FRONTEND", "whether the server is the Rust front end"),
    _front_end(
        "vllm.envs", "VLLM_KV_CACHE_LAYOUT", "whether layers of different shapes can share a block",
    ),
    _config("ObservabilityConfig", "whether there are traces", attributes="otlp_traces_endpoint"),
    _front_end(
        "vllm.usage.usage_lib", "UsageContext", "whether the engine is a server's",
        attributes="OPENAI_API_SERVER",
    ),
    _front_end("vllm.platforms", "current_platform", "whether this device is a tested one"),
    _front_end(
        "vllm.platforms.interface", "Platform", "whether this device is a tested one",
        attributes="device_type device_name",
    ),
    # Admission.
    _processor(
        "InputProcessor.__init__", "reaches the processor of an engine that asks for SLOT",
        takes="vllm_config, ...", until=ADMISSION,
    ),
    _processor(
        "InputProcessor.process_inputs", "admission: writes a request's resolved settings",
        takes="request_id, prompt, params, ...", until=ADMISSION,
    ),
    _processor(
        "InputProcessor.assign_request_id", "admission of ready-made requests",
        takes="request, ...", until=ADMISSION,
    ),
    _processor(
        "InputProcessor", "finds the turns of a prompt (loss_tokens)", attributes="tokenizer",
    ),
    _front_end(
        "vllm.v1.engine.llm_engine", "LLMEngine.add_request",
        "every offline request passes admission", calls="process_inputs assign_request_id",
    ),
    _front_end(
        "vllm.v1.engine.async_llm", "AsyncLLM.add_request",
        "every request of a server passes admission", calls="process_inputs assign_request_id",
    ),
    _front_end(
        "vllm.v1.engine", "EngineCoreRequest", "a request on its way to the engine",
        attributes=(
            "request_id sampling_params mm_features prompt_embeds resumable lora_request "
            "cache_salt"
        ),
    ),
    _front_end(
        "vllm.multimodal.inputs", "MultiModalFeatureSpec",
        "an image of a prompt, and where it stands", attributes="identifier mm_position",
    ),
    _front_end(
        "vllm.multimodal.inputs", "PlaceholderRange", "which tokens stand for an image",
        attributes="offset extract_embeds_range",
    ),
    _front_end(
        "vllm.sampling_params", "SamplingParams",
        "carries the settings to the workers, past the prefix cache",
        attributes="extra_args skip_reading_prefix_cache clone",
    ),
    _front_end("vllm.exceptions", "VLLMValidationError", "an error that is HTTP 400"),
    _front_end(
        "vllm.lora.request", "LoRARequest", "which adapter a request has",
        attributes="lora_name lora_int_id lora_path load_inplace",
    ),
    _front_end(
        "vllm.lora.utils", "get_adapter_absolute_path", "the files of an adapter",
        takes="lora_path, ...",
    ),
    # Admission of what the Rust front end sends.
    _rust(
        "vllm.v1.engine.core", "EngineCore.preprocess_add_request",
        "admission in the engine core", takes="request, ...", until=ADMISSION,
    ),
    _rust("vllm.v1.engine.core", "EngineCore", "of which engine", attributes="vllm_config"),
    _rust(
        "vllm.v1.engine.core", "EngineCoreProc.process_input_sockets",
        "tells the caller why a request was refused",
        calls="preprocess_add_request _handle_request_validation_error",
    ),
    _rust(
        "vllm.v1.engine", "EngineCoreRequest", "by which name its caller knows a request",
        attributes="external_req_id",
    ),
    _rust(
        "vllm.tokenizers", "cached_tokenizer_from_config", "finds the turns of a prompt",
        takes="model_config, ...",
    ),
    _front_end(
        "vllm.entrypoints.generate.beam_search.offline", "BeamSearchOfflineMixin.beam_search",
        "marks the requests of a beam search", until="the requests of a beam search say so",
    ),
    _front_end(
        "vllm.entrypoints.generate.beam_search.online", "BeamSearchOnlineMixin.beam_search",
        "marks the requests of a beam search", until="the requests of a beam search say so",
    ),
)  # fmt: skip
