"""The scheduler: with a KV connector, and ours for ``max_concurrent``."""

from functools import partial

from slot_vllm.engine.vllm_contract.contact import Contact

_DEFER = "a model runner can put the sampling of a complete prompt off"
_limited = partial(Contact, "limited scheduler")
_scheduler = partial(Contact, "limited scheduler", "vllm.v1.core.sched.scheduler")

SCHEDULER: tuple[Contact, ...] = (
    Contact(
        "KV connector", "vllm.v1.core.sched.scheduler", "Scheduler.schedule",
        "a request that does not read the prefix cache loads nothing from a KV connector",
        calls="get_num_new_matched_tokens", contains=("request.skip_reading_prefix_cache",),
    ),
    _limited(
        "vllm.config", "SchedulerConfig", "names our scheduler",
        attributes="scheduler_cls get_scheduler_cls enable_chunked_prefill max_num_seqs",
    ),
    _scheduler(
        "Scheduler", "what ours is built on",
        attributes=(
            "scheduler_config requests kv_cache_manager num_prefill_lookahead "
            "need_mamba_block_aligned_split _mamba_block_aligned_split max_num_active_reqs"
        ),
    ),
    _scheduler(
        "Scheduler.schedule", "all of a step's requests pass what ours overrides",
        calls="_reserve_prefill_lookahead _handle_blocked_waiting_request",
        contains=("self.max_num_active_reqs",),
    ),
    _scheduler(
        "Scheduler._reserve_prefill_lookahead", "holds back a prompt's last token",
        takes="request, num_computed_tokens, num_new_tokens", until=_DEFER,
    ),
    _scheduler(
        "Scheduler._handle_blocked_waiting_request", "passes a waiting request over",
        takes="request", until=_DEFER,
    ),
    _scheduler(
        "Scheduler._preempt_request", "forgets a request that does not complete",
        takes="request, ...", until=_DEFER,
    ),
    _scheduler(
        "Scheduler._update_after_schedule", "which prompts completed", takes="scheduler_output",
        until=_DEFER,
    ),
    _limited(
        "vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "what ours is built on",
        until=_DEFER,
    ),
    _limited(
        "vllm.v1.core.kv_cache_manager", "KVCacheManager.get_computed_blocks",
        "how much of a waiting prompt is cached", takes="request, ...",
    ),
    _limited(
        "vllm.v1.request", "Request", "which prompts complete",
        attributes=(
            "request_id num_prompt_tokens num_computed_tokens num_tokens prompt_token_ids "
            "sampling_params lora_request mm_features"
        ),
    ),
)  # fmt: skip
