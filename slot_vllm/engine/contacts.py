"""What of vLLM is relied on, as data: a start-up check looks for it, and so does a check of a
release's source. Why each thing is touched and when that can go stands in ``slot_vllm.engine``.

This module imports nothing of vLLM.
"""

from dataclasses import dataclass
from typing import Literal, get_args

# Where a contact is needed: in every front end (start-up, admission), in the OpenAI-compatible
# server's, in every worker, in one with that model runner, to keep hidden states in the KV cache;
# for max_concurrent, for SLOT's part of /metrics, to leave scoring endpoints alone, for traces,
# among several tensor-parallel ranks.
Part = Literal[
    "front end",
    "server",
    "worker",
    "V1 runner",
    "V2 runner",
    "hidden-state cache",
    "hidden-state cache, V1 runner",
    "hidden-state cache, V2 runner",
    "limited scheduler",
    "metrics",
    "scoring",
    "tracing",
    "tensor parallel",
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Contact:
    """One name of vLLM.

    path: the module. name: dotted, below it: a class, a function or a method. why: what SLOT uses
    it for. attributes: what the class or its instances must have. parameters: of a function, those
    that must come first, in this order, ``self`` left out. keywords: parameters that it must have,
    wherever. only: whether it may require no others. calls: what its body must call, by the last
    name. returns: what it must return first, as variables of its body. contains: expressions that
    its body must have, as ``ast.unparse`` writes them.
    """

    part: Part
    path: str
    name: str
    why: str
    attributes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    only: bool = False
    calls: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}.{self.name}"


# Both read probabilities of the next token: /generative_scoring and /v1/systemone.
SCORING_ENDPOINTS = (
    (
        "vllm.entrypoints.generate.generative_scoring.serving",
        "ServingGenerativeScoring",
        "create_generative_scoring",
    ),
    (
        "vllm.entrypoints.generate.structured_decisions.serving",
        "ServingStructuredDecisions",
        "create_decision",
    ),
)

CONTACTS: tuple[Contact, ...] = (
    # Start-up.
    Contact(
        "front end", "vllm.engine.arg_utils", "EngineArgs.create_engine_config",
        "expands the bare name, refuses what cannot work, resolves the settings",
        parameters=("usage_context",),
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
        "front end", "vllm.utils.import_utils", "resolve_obj_by_qualname",
        "whether another extension is a subclass of ours", parameters=("qualname",),
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
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.process_inputs",
        "admission: writes a request's resolved settings",
        parameters=("request_id", "prompt", "params"),
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.assign_request_id",
        "admission of ready-made requests", parameters=("request",),
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
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.online",
        "BeamSearchOnlineMixin.beam_search", "marks the requests of a beam search",
    ),
    # The OpenAI-compatible server.
    Contact(
        "front end", "vllm.entrypoints.generate.base.serving", "GenerateBaseServing.__init__",
        "reaches the serving objects of an engine that asks for SLOT",
        parameters=("engine_client",),
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.base.serving", "GenerateBaseServing._log_inputs",
        "the last place where an error is HTTP 400 for a streaming request",
        parameters=("request_id", "inputs", "params", "lora_request"),
    ),
    *(
        Contact(
            "front end", f"vllm.entrypoints.openai.{path}.protocol", name,
            "keeps the settings of a request as they were sent", attributes=("vllm_xargs",),
        )
        for path, name in (
            ("chat_completion", "ChatCompletionRequest"),
            ("completion", "CompletionRequest"),
            ("responses", "ResponsesRequest"),
        )
    ),
    Contact(
        "front end", "vllm.entrypoints.anthropic.protocol", "AnthropicMessagesRequest",
        "keeps the settings of a request as they were sent",
    ),
    Contact(
        "server", "vllm.entrypoints.openai.chat_completion.serving",
        "OpenAIServingChat.create_chat_completion", "checks a chat request's settings",
        parameters=("request", "raw_request"), only=True,
    ),
    Contact(
        "server", "vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat",
        "every chat request passes the check", calls=("_log_inputs",),
    ),
    Contact(
        "server", "vllm.entrypoints.openai.chat_completion.batch_serving",
        "OpenAIServingChatBatch.create_batch_chat_completion",
        "checks the settings of a batch of chats", parameters=("request", "raw_request"), only=True,
    ),
    Contact(
        "server", "vllm.entrypoints.openai.completion.serving",
        "OpenAIServingCompletion.create_completion", "checks a completion request's settings",
        parameters=("request", "raw_request"), only=True,
    ),
    Contact(
        "server", "vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion",
        "every completion request passes the check", calls=("_log_inputs",),
    ),
    Contact(
        "server", "vllm.entrypoints.openai.responses.serving",
        "OpenAIServingResponses.create_responses", "checks a response request's settings",
        parameters=("request", "raw_request"), only=True,
    ),
    Contact(
        "server", "vllm.entrypoints.openai.responses.serving", "OpenAIServingResponses",
        "every response request passes the check",
        calls=("_log_inputs", "_generate_with_builtin_tools"),
    ),
    Contact(
        "server", "vllm.entrypoints.openai.responses.serving",
        "OpenAIServingResponses._generate_with_builtin_tools",
        "checks a response's prompt before its generator starts",
        keywords=("engine_input", "sampling_params", "lora_request"),
    ),
    Contact(
        "server", "vllm.v1.engine.async_llm", "AsyncLLM", "reaches the engine's admission",
        attributes=("input_processor", "vllm_config"),
    ),
    Contact(
        "server", "vllm.entrypoints.anthropic.serving",
        "AnthropicServingMessages.create_messages", "checks a message request's settings",
        parameters=("request", "raw_request"), only=True,
    ),
    *(
        Contact(
            "scoring", path, f"{name}.{method}", "leaves what scores alone",
            parameters=("request", "raw_request"), only=True,
        )
        for path, name, method in SCORING_ENDPOINTS
    ),
    # The worker, whichever its model runner.
    Contact(
        "worker", "vllm.v1.worker.gpu_worker", "Worker.load_model",
        "puts SLOT onto the model runner once its model is loaded", calls=("load_model",),
    ),
    Contact(
        "worker", "vllm.v1.worker.gpu_worker", "Worker", "the runner, and changes of its weights",
        attributes=(
            "vllm_config", "model_runner", "use_v2_model_runner", "reload_weights",
            "update_weights", "finish_weight_update", "sleep", "wake_up",
        ),
    ),
    Contact(
        "worker", "vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model",
        "takes no notice of vLLM's own warm-up requests",
    ),
    Contact(
        "worker", "vllm.distributed.parallel_state", "get_pp_group", "which stage has the head"
    ),
    Contact(
        "worker", "vllm.distributed.parallel_state", "get_tp_group", "which part this rank has"
    ),
    Contact(
        "worker", "vllm.distributed.parallel_state", "GroupCoordinator",
        "which stage and which part this worker has, and what all workers must have alike",
        attributes=("is_last_rank", "world_size", "rank_in_group", "cpu_group"),
    ),
    Contact(
        "worker", "vllm.v1.worker.gpu_worker", "Worker.add_lora",
        "an adapter that is loaded in place ends what is shared", parameters=("lora_request",),
        only=True,
    ),
    Contact(
        "worker", "vllm.v1.core.sched.output", "SchedulerOutput",
        "which requests come, go and are preempted",
        attributes=(
            "finished_req_ids", "preempted_req_ids", "scheduled_new_reqs", "num_scheduled_tokens",
        ),
    ),
    Contact(
        "worker", "vllm.v1.core.sched.output", "NewRequestData", "what a request brings",
        attributes=(
            "req_id", "sampling_params", "prompt_token_ids", "lora_request", "mm_features",
            "prompt_embeds",
        ),
    ),
    Contact(
        "worker", "vllm.config", "ModelConfig", "the size of the hidden states",
        attributes=("get_hidden_size",),
    ),
    Contact(
        "worker", "vllm.model_executor.layers.logits_processor", "LogitsProcessor",
        "the head: what is cut off, the soft cap and the scale",
        attributes=("org_vocab_size", "soft_cap", "scale"),
    ),
    Contact(
        "worker", "vllm.model_executor.layers.logits_processor", "LogitsProcessor.forward",
        "adds W delta before the soft cap and the scale",
        parameters=("lm_head", "hidden_states", "embedding_bias"), calls=("_get_logits",),
    ),
    Contact(
        "worker", "vllm.model_executor.layers.logits_processor", "LogitsProcessor._get_logits",
        "the logits before the soft cap, without padding",
        parameters=("hidden_states", "lm_head", "embedding_bias"),
    ),
    Contact(
        "worker", "vllm.lora.layers.logits_processor", "LogitsProcessorWithLoRA",
        "the head under LoRA", attributes=("base_layer",),
    ),
    # V1.
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model",
        "arrivals and departures", parameters=("scheduler_output",),
        calls=("_prepare_inputs", "_model_forward", "compute_logits"),
        contains=("hidden_states[logits_indices]",),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner._prepare_inputs",
        "which rows get logits", returns=("logits_indices",),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner._model_forward",
        "the step's hidden states",
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner.initialize_kv_cache",
        "says what the hidden states cost", parameters=("kv_cache_config",),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "the step's batch",
        attributes=(
            "input_batch", "requests", "query_start_loc", "positions", "max_num_reqs", "dtype",
            "device", "get_model", "discard_request_mask",
        ),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_input_batch", "InputBatch", "the step's requests",
        attributes=("req_ids", "num_reqs", "generators"),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_input_batch", "CachedRequestState",
        "where each request's rows begin; its generator, on a CPU",
        attributes=("num_computed_tokens", "generator"),
    ),
    Contact(
        "V1 runner", "vllm.v1.utils", "CpuGpuBuffer", "query_start_loc on host and device",
        attributes=("np", "gpu"),
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner._bookkeeping_sync",
        "rewinds generators, which on a CPU have no offset",
        contains=("gen.set_offset(gen.get_offset() - 4)",),
    ),
    # V2.
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.execute_model",
        "arrivals and departures", parameters=("scheduler_output",), keywords=("dummy_run",),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.sample",
        "the step's hidden states and batch", parameters=("hidden_states", "input_batch"),
        calls=("compute_logits",), contains=("hidden_states[input_batch.logits_indices]",),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.sample_tokens",
        "every step's logits are made in sample", calls=("sample",),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.initialize_kv_cache",
        "says what the hidden states cost", parameters=("kv_cache_config",),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "the step's batch",
        attributes=("max_num_reqs", "dtype", "device", "get_model"),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.input_batch", "InputBatch",
        "prompt rows and rows of logits to requests",
        attributes=(
            "req_ids", "num_computed_tokens_np", "query_start_loc_np", "idx_mapping_np",
            "expanded_idx_mapping", "num_tokens", "positions", "logits_indices",
        ),
    ),
    # Hidden states in the KV cache, on either runner.
    Contact(
        "hidden-state cache", "vllm.v1.kv_cache_interface", "HiddenStateCacheSpec",
        "how vLLM lays out a cache of hidden states",
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionLayer.__init__", "the layer that has the cache",
        parameters=("num_heads", "head_size", "cache_config", "prefix"),
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionLayer", "the layer that has the cache",
        attributes=("kv_cache", "get_attn_backend", "get_kv_cache_spec"),
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionLayer.get_kv_cache_spec", "lies beside the attention layers",
        calls=("HiddenStateCacheSpec",),
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionBackend", "allows CUDA graphs",
        attributes=("forward_includes_kv_cache_update", "get_builder_cls"),
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionMetadataBuilder.build", "allows CUDA graphs",
        parameters=("common_prefix_len", "common_attn_metadata", "fast_build"), only=True,
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states",
        "CacheOnlyAttentionMetadata.__init__", "allows CUDA graphs", parameters=("slot_mapping",),
        only=True,
    ),
    Contact(
        "hidden-state cache", "vllm.model_executor.models.extract_hidden_states", "basic_cache",
        "writes the rows, laid out as they are read",
        parameters=("to_cache", "kv_cache", "slot_mapping"), only=True,
        contains=("kv_cache[slot_mapping // block_size, :, slot_mapping % block_size]",),
    ),
    Contact(
        "hidden-state cache", "vllm.v1.attention.backend", "AttentionCGSupport",
        "allows CUDA graphs", attributes=("ALWAYS",),
    ),
    Contact(
        "hidden-state cache", "vllm.config", "set_current_vllm_config", "makes the layer",
        parameters=("vllm_config",),
    ),
    Contact(
        "hidden-state cache", "vllm.config", "get_current_vllm_config", "makes the layer"
    ),
    Contact(
        "hidden-state cache", "vllm.config", "CompilationConfig", "registers the layer",
        attributes=("static_forward_context",),
    ),
    Contact(
        "hidden-state cache", "vllm.v1.kv_cache_interface", "KVCacheConfig",
        "finds the layer's blocks", attributes=("kv_cache_groups", "num_blocks"),
    ),
    Contact(
        "hidden-state cache", "vllm.v1.kv_cache_interface", "KVCacheGroupSpec",
        "finds the layer's blocks", attributes=("layer_names", "kv_cache_spec"),
    ),
    Contact(
        "hidden-state cache, V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner",
        "the V1 runner's blocks", attributes=("kv_cache_config",),
    ),
    Contact(
        "hidden-state cache, V1 runner", "vllm.v1.worker.gpu_input_batch", "InputBatch",
        "the V1 runner's blocks", attributes=("block_table",),
    ),
    Contact(
        "hidden-state cache, V1 runner", "vllm.v1.worker.block_table", "BlockTable",
        "the V1 runner's blocks", attributes=("slot_mapping", "block_table", "block_size"),
    ),
    Contact(
        "hidden-state cache, V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner",
        "the V2 runner's blocks", attributes=("kv_cache_config", "block_tables"),
    ),
    Contact(
        "hidden-state cache, V2 runner", "vllm.v1.worker.gpu.block_table", "BlockTables",
        "the V2 runner's blocks", attributes=("slot_mappings", "block_tables", "block_sizes"),
    ),
    # max_concurrent.
    Contact(
        "limited scheduler", "vllm.config", "SchedulerConfig", "names our scheduler",
        attributes=(
            "scheduler_cls", "get_scheduler_cls", "enable_chunked_prefill", "max_num_seqs",
        ),
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler", "Scheduler", "what ours is built on",
        attributes=(
            "scheduler_config", "requests", "kv_cache_manager", "num_prefill_lookahead",
            "need_mamba_block_aligned_split", "_mamba_block_aligned_split",
        ),
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler", "Scheduler.schedule",
        "all of a step's requests pass what ours overrides",
        calls=("_reserve_prefill_lookahead", "_handle_blocked_waiting_request"),
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler",
        "Scheduler._reserve_prefill_lookahead", "holds back a prompt's last token",
        parameters=("request", "num_computed_tokens", "num_new_tokens"), only=True,
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler",
        "Scheduler._handle_blocked_waiting_request", "passes a waiting request over",
        parameters=("request",), only=True,
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler", "Scheduler._preempt_request",
        "forgets a request that does not complete", parameters=("request",),
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.scheduler", "Scheduler._update_after_schedule",
        "which prompts completed", parameters=("scheduler_output",), only=True,
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.sched.async_scheduler", "AsyncScheduler",
        "what ours is built on",
    ),
    Contact(
        "limited scheduler", "vllm.v1.core.kv_cache_manager", "KVCacheManager.get_computed_blocks",
        "how much of a waiting prompt is cached", parameters=("request",),
    ),
    Contact(
        "limited scheduler", "vllm.v1.request", "Request", "which prompts complete",
        attributes=(
            "request_id", "num_prompt_tokens", "num_computed_tokens", "num_tokens",
            "prompt_token_ids", "sampling_params", "lora_request",
        ),
    ),
    # What a server shows.
    Contact(
        "metrics", "vllm.entrypoints.serve.instrumentator.metrics", "attach_router",
        "appends to what /metrics answers", parameters=("app",), only=True,
    ),
    Contact(
        "metrics", "vllm.v1.engine.core_client", "AsyncMPClient", "which engines there are",
        attributes=("engine_ranks_managed",),
    ),
    Contact(
        "metrics", "vllm.v1.engine.core_client", "AsyncMPClient.call_utility_all_async",
        "asks every engine", parameters=("method",),
    ),
    Contact(
        "metrics", "vllm.v1.engine.async_llm", "AsyncLLM", "reaches the engines",
        attributes=("engine_core", "collective_rpc"),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "instrument_manual",
        "adds attributes to the request spans", keywords=("attributes",),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "OutputProcessor.do_tracing",
        "knows whose span is being made",
        parameters=("engine_core_output", "req_state", "iteration_stats"), only=True,
        calls=("instrument_manual",),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "RequestState.from_new_request",
        "keeps a request's settings for its span", keywords=("request",),
    ),
    # Among several ranks.
    Contact(
        "tensor parallel", "vllm.distributed.parallel_state", "GroupCoordinator",
        "what the ranks agree on", attributes=("cpu_group",),
    ),
    Contact(
        "tensor parallel", "vllm.distributed.parallel_state", "GroupCoordinator.all_gather",
        "puts together what the ranks have", parameters=("input_",), keywords=("dim",),
    ),
    Contact(
        "tensor parallel", "vllm.model_executor.layers.logits_processor",
        "LogitsProcessor._gather_logits", "gathers the logits once W delta is added",
        parameters=("logits",), only=True,
    ),
    Contact(
        "tensor parallel", "vllm.model_executor.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding", "which columns a rank has",
        attributes=("tp_size", "num_added_embeddings"),
    ),
)  # fmt: skip
