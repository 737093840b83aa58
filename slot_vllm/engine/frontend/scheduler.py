"""How many prompts may complete in one engine step (``max_concurrent``).

The worker optimizes a prompt in the step that completes it and cannot put it off, so the scheduler
holds back the last token of those beyond the limit. They keep their place: the one that was
scheduled first completes first, and in each step at least one does.
"""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from slot_vllm.engine.wire.engine_settings import read_config
from slot_vllm.engine.wire.prompt_key import images_of, prompt_key
from slot_vllm.engine.wire.resolved import RESOLVED, read_resolved
from slot_vllm.params import SlotError

logger = logging.getLogger("vllm.slot_vllm")


@dataclass(frozen=True)
class _Prompt:
    """optimized: whether it has SLOT and something to learn from. key: what requests that use one
    delta have in common; None: it uses its own."""

    optimized: bool
    key: bytes | None = None


class LimitedCompletions(Scheduler):
    """A base for schedulers, before vLLM's own.

    Not counted are requests that use the delta of an equal prompt which completes in the same step
    or completed before and is alive. The workers' ``delta_cache_mb`` is not known here, so an
    equal prompt that is not alive any more does not help; nor are changes of the weights, which
    end sharing: then more than the limit can be optimized.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self._slot_config = read_config(vllm_config)
        self._prompts: WeakKeyDictionary[Request, _Prompt] = WeakKeyDictionary()
        self._completed: WeakSet[Request] = WeakSet()
        self._learned: WeakValueDictionary[bytes, Request] = WeakValueDictionary()
        # Of the step that is being scheduled.
        self._completing: dict[Request, Hashable] = {}
        self._one_waits = False
        self._passed_over = 0
        self._most_active = self.max_num_active_reqs
        self._failed = False

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's last step in choosing how many tokens a running or waiting request gets."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        length = request.num_prompt_tokens
        completes = num_computed_tokens < length <= num_computed_tokens + tokens
        if not completes or not self._to_be_optimized(request):
            return tokens
        if self._may_complete(request):
            self._completing[request] = self._prompt(request).key or request
            return tokens
        return self._incomplete(request, num_computed_tokens)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether a waiting request may be scheduled; one that may not is passed over."""
        if not super()._handle_blocked_waiting_request(request):
            return False
        if not self._to_be_optimized(request) or self._may_complete(request):
            return True
        if not self._one_waits:
            # No token of it may be computed. In the queue it would block those behind it.
            self._one_waits = not self._incomplete(request, self._computed(request))
        # Those behind it would complete before it, again and again.
        if not self._one_waits:
            return True
        self._passed_over += 1
        if self._passed_over >= self.scheduler_config.max_num_seqs:
            # vLLM ends its looks: thousands may wait, and each costs the running ones time.
            self.max_num_active_reqs = 0
        return False

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._completing.pop(request, None)
        super()._preempt_request(request, *args, **kwargs)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        for request, key in self._completing.items():
            # Those without KV blocks were not scheduled.
            if request.request_id in scheduler_output.num_scheduled_tokens:
                self._completed.add(request)
                if isinstance(key, bytes):
                    self._learned[key] = request
        self._completing.clear()
        self._one_waits = False
        self._passed_over = 0
        self.max_num_active_reqs = self._most_active
        super()._update_after_schedule(scheduler_output)

    def _incomplete(self, request: Request, computed: int) -> int:
        """How many more tokens of a prompt can be computed without completing it, after
        ``computed``."""
        if not self.scheduler_config.enable_chunked_prefill:
            return 0
        held_back = max(1, self.num_prefill_lookahead)
        tokens = max(0, request.num_prompt_tokens - held_back - computed)
        if tokens and self.need_mamba_block_aligned_split:
            hit = computed - request.num_computed_tokens
            tokens = self._mamba_block_aligned_split(request, tokens, hit)
        return tokens

    def _computed(self, request: Request) -> int:
        if request.num_computed_tokens:
            return request.num_computed_tokens
        return self.kv_cache_manager.get_computed_blocks(request)[1]

    def _to_be_optimized(self, request: Request) -> bool:
        return request not in self._completed and self._prompt(request).optimized

    def _may_complete(self, request: Request) -> bool:
        key = self._prompt(request).key or request
        counted = {other for other in self._completing.values() if not self._is_learned(other)}
        limit = self._slot_config.max_concurrent
        return limit is None or len(counted - {key}) < limit or self._is_learned(key)

    def _is_learned(self, key: Hashable) -> bool:
        """Whether a request that has learned this delta is alive."""
        learned = self._learned.get(key) if isinstance(key, bytes) else None
        return learned is not None and self.requests.get(learned.request_id) is learned

    def _prompt(self, request: Request) -> _Prompt:
        found = self._prompts.get(request)
        if found is None:
            try:
                found = self._describe(request)
            except Exception:
                # The worker fails in the same way, and counts it.
                found = _Prompt(False)
                if not self._failed:
                    self._failed = True
                    logger.exception("SLOT failed in the scheduler (said once); no limit holds")
            self._prompts[request] = found
        return found

    def _describe(self, request: Request) -> _Prompt:
        tokens = request.prompt_token_ids
        extra_args = request.sampling_params and request.sampling_params.extra_args
        if not extra_args or RESOLVED not in extra_args or tokens is None or len(tokens) < 2:
            return _Prompt(False)
        resolved = read_resolved(extra_args[RESOLVED])
        if resolved.bypassed is not None or not resolved.params.steps:
            return _Prompt(False)
        lora = request.lora_request
        if not self._slot_config.delta_cache_mb or (lora is not None and lora.load_inplace):
            return _Prompt(True)
        skipped = self._slot_config.skipped(len(tokens))
        salt, images = resolved.cache_salt, images_of(request)
        key = prompt_key(tokens, skipped, resolved.params, lora, salt, (0, 0), images)
        return _Prompt(True, key)


class LimitedScheduler(LimitedCompletions):
    """vLLM's, with a limit."""


class LimitedAsyncScheduler(LimitedCompletions, AsyncScheduler):
    """vLLM's asynchronous one, with a limit."""


_LIMITED = {Scheduler: LimitedScheduler, AsyncScheduler: LimitedAsyncScheduler}


def limit_completions(vllm_config: Any) -> None:
    """Have the engine use a scheduler with a limit. Raises SlotError for one that is neither
    vLLM's own nor built on ``LimitedCompletions``."""
    settings = vllm_config.scheduler_config
    chosen = settings.get_scheduler_cls()
    if issubclass(chosen, LimitedCompletions):
        return
    if chosen not in _LIMITED:
        raise SlotError(
            f"slot.max_concurrent: the scheduler {chosen.__module__}.{chosen.__qualname__} is not "
            "known; allowed: vLLM's own, or a subclass of both "
            f"{__name__}.{LimitedCompletions.__name__} and it"
        )
    settings.scheduler_cls = f"{__name__}.{_LIMITED[chosen].__name__}"
