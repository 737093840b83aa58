"""What a patch of ``patches/`` adds to vLLM, as data: one entry per method that has a hunk. A hook
that is missing would turn SLOT off where it is, without a word, so that ``native`` looks for all.
"""

from slot_vllm.engine.contacts import SCORING_ENDPOINTS, Contact, Part

_SERVING = "vllm.entrypoints.openai"
_WORKER = "vllm.v1.worker.gpu_worker"
_RUNNERS: tuple[tuple[Part, str], ...] = (
    ("V1 runner", "vllm.v1.worker.gpu_model_runner"),
    ("V2 runner", "vllm.v1.worker.gpu.model_runner"),
)

HOOKS: tuple[Contact, ...] = (
    Contact(
        "front end", "vllm.engine.arg_utils", "EngineArgs.create_engine_config",
        "refuses what cannot work, resolves the settings",
        calls=("before_configuration", "configured"),
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.__init__",
        "has the engine's admission", calls=("admission",),
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.process_inputs",
        "asks the admission", calls=("check_params", "admit"), returns=("request",),
    ),
    Contact(
        "front end", "vllm.v1.engine.input_processor", "InputProcessor.assign_request_id",
        "asks the admission about ready-made requests", calls=("admit",),
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.offline",
        "BeamSearchOfflineMixin.beam_search", "marks the requests of a beam search",
        calls=("of_beam_search",),
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.offline",
        "BeamSearchOfflineMixin._build_beam_sampling_params",
        "marks the requests of a beam search", contains=("dict(base_params.extra_args or {})",),
    ),
    Contact(
        "front end", "vllm.entrypoints.generate.beam_search.online",
        "BeamSearchOnlineMixin.beam_search", "marks the requests of a beam search",
        calls=("of_beam_search",),
    ),
    Contact(
        "server", "vllm.entrypoints.generate.base.serving", "GenerateBaseServing.__init__",
        "knows the admission", contains=("getattr(self.input_processor, 'slot_admission', None)",),
    ),
    Contact(
        "server", "vllm.entrypoints.serve.engine.serving", "BaseServing",
        "has no admission without SLOT", attributes=("slot_admission",),
    ),
    Contact(
        "server", "vllm.entrypoints.serve.engine.serving", "BaseServing._log_inputs",
        "asks the admission before a response begins", calls=("check_inputs",),
    ),
    Contact(
        "server", f"{_SERVING}.responses.serving", "OpenAIServingResponses._create_responses",
        "asks the admission before a response begins", calls=("check_generation",),
    ),
    *(
        Contact("server", path, name, "checks a request as it came", calls=("check_entry",))
        for path, name in (
            (f"{_SERVING}.chat_completion.serving", "OpenAIServingChat.create_chat_completion"),
            (
                f"{_SERVING}.chat_completion.batch_serving",
                "OpenAIServingChatBatch.create_batch_chat_completion",
            ),
            (f"{_SERVING}.completion.serving", "OpenAIServingCompletion.create_completion"),
            (f"{_SERVING}.responses.serving", "OpenAIServingResponses.create_responses"),
            ("vllm.entrypoints.anthropic.serving", "AnthropicServingMessages.create_messages"),
        )
    ),
    Contact(
        "scoring", "vllm.entrypoints.generate.label_reads", "next_token_label_reads",
        "marks the requests of scores", calls=("mark_scoring",),
    ),
    *(
        Contact(
            "scoring", path, f"{name}.{method}", "refuses settings that cannot have an effect",
            calls=("check_scoring",),
        )
        for path, name, method in SCORING_ENDPOINTS
    ),
    Contact(
        "metrics", "vllm.entrypoints.serve.instrumentator.metrics", "attach_router",
        "appends to what /metrics answers", calls=("extend_metrics",),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "RequestState",
        "keeps a request's settings for its span", attributes=("slot_resolved",),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "RequestState.from_new_request",
        "keeps a request's settings for its span",
        contains=("sampling_params.extra_args.get('slot')",),
    ),
    Contact(
        "tracing", "vllm.v1.engine.output_processor", "OutputProcessor.do_tracing",
        "adds attributes to the request spans", calls=("span_attributes",),
    ),
    Contact(
        "worker", _WORKER, "Worker", "finds the hook of a loaded model",
        attributes=("slot_hook",),
    ),
    Contact(
        "worker", _WORKER, "Worker.load_model",
        "puts SLOT onto the model runner once its model is loaded", calls=("slot_model_loaded",),
    ),
    Contact(
        "worker", _WORKER, "Worker.initialize_from_config", "says what the hidden states cost",
        calls=("kv_cache_ready",),
    ),
    Contact(
        "worker", _WORKER, "Worker.compile_or_warm_up_model",
        "takes no notice of vLLM's own warm-up requests",
        calls=("warming_up", "_compile_or_warm_up_model"),
    ),
    Contact(
        "worker", _WORKER, "Worker._compile_or_warm_up_model",
        "takes no notice of vLLM's own warm-up requests",
    ),
    Contact(
        "worker", _WORKER, "Worker.add_lora",
        "an adapter that is loaded in place ends what is shared",
        contains=("self.slot_hook.add_lora(lora_request)",),
    ),
    Contact(
        "worker", _WORKER, "Worker._slot_weights_change",
        "deltas of other weights are not shared", calls=("weights_change",),
    ),
    *(
        Contact(
            "worker", _WORKER, f"Worker.{name}", "deltas of other weights are not shared",
            calls=("_slot_weights_change",),
        )
        for name in (
            "reload_weights", "reset_weights", "update_weights", "finish_weight_update", "sleep",
            "wake_up",
        )
    ),
    Contact(
        "worker", "vllm.model_executor.layers.logits_processor", "LogitsProcessor.forward",
        "adds W delta before the soft cap and the scale", calls=("take", "logits"),
    ),
    *(
        Contact(part, path, "GPUModelRunner", "finds the hook", attributes=("slot_hook",))
        for part, path in _RUNNERS
    ),
    Contact(
        "V1 runner", "vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model",
        "arrivals, departures and the step's hidden states",
        contains=(
            "self.slot_hook.begin_step(scheduler_output)",
            "self.slot_hook.before_logits(model_output, logits_indices)",
        ),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.execute_model",
        "arrivals and departures", contains=("self.slot_hook.begin_step(scheduler_output)",),
    ),
    Contact(
        "V2 runner", "vllm.v1.worker.gpu.model_runner", "GPUModelRunner.sample",
        "the step's hidden states",
        contains=(
            "self.slot_hook.before_logits(hidden_states, input_batch)",
            "self.slot_hook.after_logits()",
        ),
    ),
)  # fmt: skip
