"""Start-up and admission, in every front end."""

from slot_vllm.engine.vllm_contract.contact import ADMISSION, Contact

FRONT_END: tuple[Contact, ...] = (
    # Start-up.
    Contact(
        "front end", "vllm.engine.arg_utils", "EngineArgs.create_engine_config",
        "expands the bare name, refuses what cannot work, resolves the settings",
        parameters=("usage_context",),
        until="worker extensions get a hook for the configuration",
    ),
    Contact(
        "front end", "vllm.engine.arg_utils", "EngineArgs", "the name of the worker extension",
        attributes=("worker_extension_cls",),
    ),
    Contact(
        "front end", "vllm.config", "VllmConfig", "what an engine is configured for",
        attributes=(
            "additional_config", "model_config", "cache_config", "parallel_config",
            "speculative_config", "kv_transfer_config", "scheduler_config",
            "observability_config",
        ),
    ),
    Contact(
        "front end", "vllm.config", "ParallelConfig", "what is asked for and what is refused",
        attributes=(
            "worker_extension_cls", "tensor_parallel_size", "pipeline_parallel_size",
            "data_parallel_size", "prefill_context_parallel_size",
            "decode_context_parallel_size",
        ),
    ),
    Contact(
        "front end", "vllm.config", "ModelConfig", "which models are refused",
        attributes=(
            "runner_type", "is_encoder_decoder", "is_diffusion", "hf_text_config", "is_hybrid",
            "has_inner_state", "is_attention_free", "get_sliding_window", "attention_chunk_size",
        ),
    ),
    Contact(
        "front end", "vllm.config", "CacheConfig", "what is refused; whether prefixes are cached",
        attributes=("kv_sharing_fast_prefill", "enable_prefix_caching", "cache_dtype"),
    ),
    Contact(
        "front end", "vllm.config", "SpeculativeConfig", "which drafts are refused",
        attributes=("method",),
    ),
    Contact(
        "front end", "vllm.envs", "VLLM_USE_RUST_FRONTEND", "refuses the Rust front end",
    ),
    Contact(
        "front end", "vllm.envs", "VLLM_KV_CACHE_LAYOUT",
        "whether layers of different shapes can share a block",
    ),
    Contact(
        "front end", "vllm.config", "ObservabilityConfig", "whether there are traces",
        attributes=("otlp_traces_endpoint",),
    ),
    Contact(
        "front end", "vllm.usage.usage_lib", "UsageContext", "whether the engine is a server's",
        attributes=("OPENAI_API_SERVER",),
    ),
    Contact(
        "front end", "vllm.platforms", "current_platform", "whether this device is a tested one",
    ),
    Contact(
        "front end", "vllm.platforms.interface", "Platform", "whether this device is a tested one",
        attributes=("device_type", "device_name"),
    ),
    # Admission.
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.__init__",
        "reaches the processor of an engine that asks for SLOT", parameters=("vllm_config",),
        until=ADMISSION,
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.process_inputs",
        "admission: writes a request's resolved settings",
        parameters=("request_id", "prompt", "params"),
        until=ADMISSION,
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.assign_request_id",
        "admission of ready-made requests", parameters=("request",),
        until=ADMISSION,
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor",
        "finds the turns of a prompt (loss_tokens)", attributes=("tokenizer",),
    ),
    Contact(
        "front end", "vllm.v1.engine.llm_engine", "LLMEngine.add_request",
        "every offline request passes admission", calls=("process_inputs", "assign_request_id"),
    ),
    Contact(
        "front end", "vllm.v1.engine.async_llm", "AsyncLLM.add_request",
        "every request of a server passes admission",
        calls=("process_inputs", "assign_request_id"),
    ),
    Contact(
        "front end", "vllm.v1.engine", "EngineCoreRequest", "a request on its way to the engine",
        attributes=(
            "request_id", "sampling_params", "mm_features", "prompt_embeds", "resumable",
            "lora_request", "cache_salt",
        ),
    ),
    Contact(
        "front end", "vllm.multimodal.inputs", "MultiModalFeatureSpec",
        "an image of a prompt, and where it stands", attributes=("identifier", "mm_position"),
    ),
    Contact(
        "front end", "vllm.multimodal.inputs", "PlaceholderRange",
        "which tokens stand for an image", attributes=("offset", "extract_embeds_range"),
    ),
    Contact(
        "front end", "vllm.sampling_params", "SamplingParams",
        "carries the settings to the workers, past the prefix cache",
        attributes=("extra_args", "skip_reading_prefix_cache", "clone"),
    ),
    Contact(
        "front end", "vllm.exceptions", "VLLMValidationError", "an error that is HTTP 400"
    ),
    Contact(
        "front end", "vllm.lora.request", "LoRARequest", "which adapter a request has",
        attributes=("lora_name", "lora_int_id", "lora_path", "load_inplace"),
    ),
    Contact(
        "front end", "vllm.lora.utils", "get_adapter_absolute_path", "the files of an adapter",
        parameters=("lora_path",),
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.offline",
        "BeamSearchOfflineMixin.beam_search", "marks the requests of a beam search",
        until="the requests of a beam search say so",
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.online",
        "BeamSearchOnlineMixin.beam_search", "marks the requests of a beam search",
        until="the requests of a beam search say so",
    ),
)  # fmt: skip
