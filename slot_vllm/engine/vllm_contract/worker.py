"""The worker, its two model runners, and its tensor-parallel ranks."""

from functools import partial

from slot_vllm.engine.vllm_contract.contact import Contact

_LOGITS = "the runners and the logits layer have hooks of their own (patches/)"
_worker = partial(Contact, "worker")
_gpu_worker = partial(Contact, "worker", "vllm.v1.worker.gpu_worker")
_v1 = partial(Contact, "V1 runner")
_v2 = partial(Contact, "V2 runner")
_v1_runner = partial(Contact, "V1 runner", "vllm.v1.worker.gpu_model_runner")
_v2_runner = partial(Contact, "V2 runner", "vllm.v1.worker.gpu.model_runner")
_ranks = partial(Contact, "tensor parallel")

WORKER: tuple[Contact, ...] = (
    # The worker, whichever its model runner.
    _gpu_worker(
        "Worker.load_model", "puts SLOT onto the model runner once its model is loaded",
        calls="load_model", until="worker extensions get a hook for the loaded model",
    ),
    _gpu_worker(
        "Worker", "the runner, and changes of its weights",
        attributes=(
            "vllm_config model_runner reload_weights update_weights finish_weight_update sleep "
            "wake_up"
        ),
        until="vLLM tells a plugin when weights change",
    ),
    _gpu_worker(
        "Worker.compile_or_warm_up_model",
        "takes no notice of vLLM's own warm-up requests; looks which runner is there at the end",
        until="the runners have a hook before the logits, which warm-ups do not call",
    ),
    _worker("vllm.distributed.parallel_state", "get_pp_group", "which stage has the head"),
    _worker("vllm.distributed.parallel_state", "get_tp_group", "which part this rank has"),
    _worker(
        "vllm.distributed.parallel_state", "GroupCoordinator",
        "which stage and which part this worker has, and what all workers must have alike",
        attributes="is_last_rank world_size rank_in_group cpu_group",
    ),
    _gpu_worker(
        "Worker.add_lora", "an adapter that is loaded in place ends what is shared",
        takes="lora_request", until="vLLM tells a plugin when weights change",
    ),
    _worker(
        "vllm.v1.core.sched.output", "SchedulerOutput", "which requests come, go and are preempted",
        attributes="finished_req_ids preempted_req_ids scheduled_new_reqs num_scheduled_tokens",
    ),
    _worker(
        "vllm.v1.core.sched.output", "NewRequestData", "what a request brings",
        attributes="req_id sampling_params prompt_token_ids lora_request mm_features prompt_embeds",
    ),
    _worker(
        "vllm.config", "ModelConfig", "the size of the hidden states", attributes="get_hidden_size",
    ),
    _worker(
        "vllm.model_executor.layers.logits_processor", "LogitsProcessor",
        "the head: what is cut off, the soft cap and the scale",
        attributes="org_vocab_size soft_cap scale",
    ),
    _worker(
        "vllm.model_executor.layers.logits_processor", "LogitsProcessor.forward",
        "adds W delta before the soft cap and the scale",
        takes="lm_head, hidden_states, embedding_bias, skip_gather, ...", calls="_get_logits",
        until=_LOGITS,
    ),
    _worker(
        "vllm.model_executor.layers.logits_processor", "LogitsProcessor._get_logits",
        "the logits before the soft cap, without padding",
        takes="hidden_states, lm_head, embedding_bias, skip_gather, ...",
    ),
    _worker(
        "vllm.lora.layers.logits_processor", "LogitsProcessorWithLoRA", "the head under LoRA",
        attributes="base_layer",
    ),
    # V1.
    _v1_runner(
        "GPUModelRunner.execute_model", "arrivals and departures", takes="scheduler_output, ...",
        calls="_prepare_inputs _model_forward compute_logits",
        contains=("hidden_states[logits_indices]",), until=_LOGITS,
    ),
    _v1_runner(
        "GPUModelRunner._prepare_inputs", "which rows get logits", returns="logits_indices",
        until=_LOGITS,
    ),
    _v1_runner("GPUModelRunner._model_forward", "the step's hidden states", until=_LOGITS),
    _v1_runner(
        "GPUModelRunner.initialize_kv_cache", "says what the hidden states cost",
        takes="kv_cache_config, is_profiling, ...",
        until="vLLM keeps last hidden states for whoever asks",
    ),
    _v1_runner(
        "GPUModelRunner", "the step's batch",
        attributes=(
            "input_batch requests query_start_loc positions max_num_reqs dtype device get_model "
            "discard_request_mask"
        ),
    ),
    _v1(
        "vllm.v1.worker.gpu_input_batch", "InputBatch", "the step's requests",
        attributes="req_ids num_reqs generators",
    ),
    _v1(
        "vllm.v1.worker.gpu_input_batch", "CachedRequestState",
        "where each request's rows begin; its generator, on a CPU",
        attributes="num_computed_tokens generator",
    ),
    _v1("vllm.v1.utils", "CpuGpuBuffer", "query_start_loc on host and device", attributes="np gpu"),
    _v1_runner(
        "GPUModelRunner._bookkeeping_sync", "rewinds generators, which on a CPU have no offset",
        contains=("gen.set_offset(gen.get_offset() - 4)",),
        until="V1 goes, or vLLM rewinds a CPU's generators, without which the engine core dies",
    ),
    # V2.
    _v2_runner(
        "GPUModelRunner.execute_model", "arrivals and departures",
        takes="scheduler_output, *, dummy_run, ...", until=_LOGITS,
    ),
    _v2_runner(
        "GPUModelRunner.sample", "the step's hidden states and batch",
        takes="hidden_states, input_batch, ...", calls="compute_logits",
        contains=("hidden_states[input_batch.logits_indices]",), until=_LOGITS,
    ),
    _v2_runner(
        "GPUModelRunner.sample_tokens", "every step's logits are made in sample", calls="sample",
    ),
    _v2_runner(
        "GPUModelRunner.initialize_kv_cache", "says what the hidden states cost",
        takes="kv_cache_config, is_profiling, ...",
        until="vLLM keeps last hidden states for whoever asks",
    ),
    _v2_runner(
        "GPUModelRunner", "the step's batch",
        attributes="max_num_reqs dtype device get_model batch_sharder",
    ),
    _v2(
        "vllm.v1.worker.gpu.sample.batch_shard", "BatchSharder.shard_sampler_inputs",
        "in which order rows of logits come, where each rank samples some of the requests",
        contains=("np.flatnonzero(req_owner_np == tp_rank)",),
    ),
    _v2(
        "vllm.v1.worker.gpu.sample.batch_shard", "BatchSharder",
        "among how many ranks requests are divided", attributes="tp_size",
    ),
    _v2(
        "vllm.v1.worker.gpu.input_batch", "InputBatch",
        "prompt rows and rows of logits to requests",
        attributes=(
            "req_ids num_computed_tokens_np query_start_loc_np idx_mapping_np expanded_idx_mapping "
            "num_tokens positions logits_indices"
        ),
    ),
    # Among several ranks.
    _ranks(
        "vllm.distributed.parallel_state", "GroupCoordinator", "what the ranks agree on",
        attributes="cpu_group",
    ),
    _ranks(
        "vllm.distributed.parallel_state", "GroupCoordinator.all_gather",
        "puts together what the ranks have", takes="input_, *, dim, ...",
    ),
    _ranks(
        "vllm.model_executor.layers.logits_processor", "LogitsProcessor._gather_logits",
        "gathers the logits once W delta is added", takes="logits",
    ),
    _ranks(
        "vllm.model_executor.layers.vocab_parallel_embedding", "VocabParallelEmbedding",
        "which columns a rank has", attributes="tp_size num_added_embeddings",
    ),
)  # fmt: skip
