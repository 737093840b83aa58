"""Where the two model runners are touched. Both end in the same hook: before the step's logits
are computed, ``Deltas`` sees its hidden states and says what each row of logits gets.

A patched vLLM (``native``) calls the hook itself. Otherwise methods of the given instance are
replaced, and only of it, so other engines of the process keep theirs.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slot_vllm.engine import native
from slot_vllm.engine.deltas import BatchView, Deltas

if TYPE_CHECKING:
    from slot_vllm.engine.hidden_cache import HiddenCache

logger = logging.getLogger("vllm.slot_vllm")

# Methods of the worker.
CHANGES_WEIGHTS = ("reload_weights", "update_weights", "finish_weight_update", "sleep", "wake_up")


@dataclass(frozen=True)
class Hook:
    """What a patched vLLM finds as ``runner.slot_hook`` and calls.

    begin_step(scheduler_output): before a step. before_logits: V1, (model_output, logits_indices);
    V2, (hidden_states, input_batch). after_logits(): V2, once they are made.
    """

    begin_step: Callable[..., None]
    before_logits: Callable[..., None]
    after_logits: Callable[[], None]


@dataclass(frozen=True)
class WorkerHook:
    """What it finds as ``worker.slot_hook``.

    kv_cache_ready(kv_cache_config): once it is allocated. weights_change(): before they do.
    add_lora(lora_request): before an adapter is loaded.
    """

    kv_cache_ready: Callable[[Any], None]
    weights_change: Callable[[], None]
    add_lora: Callable[[Any], None]


def hook_v1(runner: Any, deltas: Deltas, cache: "HiddenCache | None") -> None:
    """``vllm.v1.worker.gpu_model_runner.GPUModelRunner``."""
    execute_model = runner.execute_model
    prepare_inputs = runner._prepare_inputs
    model_forward = runner._model_forward
    logits_indices: list[torch.Tensor] = []

    def hooked_execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        deltas.begin_step(scheduler_output)
        return execute_model(scheduler_output, *args, **kwargs)

    def hooked_prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        result = prepare_inputs(*args, **kwargs)
        logits_indices[:] = [result[0]]
        return result

    def hooked_model_forward(*args: Any, **kwargs: Any) -> Any:
        output = model_forward(*args, **kwargs)
        before_logits(output, logits_indices.pop())
        return output

    def before_logits(output: Any, indices: torch.Tensor) -> None:
        hidden_states = output[0] if isinstance(output, tuple) else output
        if cache is not None:
            # Of all requests: whoever hits these blocks later may have SLOT.
            rows = int(runner.query_start_loc.np[runner.input_batch.num_reqs])
            slots = block_table(cache).slot_mapping.gpu[:rows]
            cache.write(hidden_states[:rows], slots)
        if deltas.requests:
            deltas.stage(hidden_states, view(indices))

    def block_table(cache: "HiddenCache") -> Any:
        return runner.input_batch.block_table[cache.group(runner.kv_cache_config)]

    def read(i: int, rows: int) -> torch.Tensor:
        assert cache is not None
        table = block_table(cache)
        return cache.read(table.block_table.gpu[i], table.block_size, rows)

    def view(indices: torch.Tensor) -> BatchView:
        req_ids = runner.input_batch.req_ids
        count = len(req_ids)
        starts = [runner.requests[req_id].num_computed_tokens for req_id in req_ids]
        ends = runner.query_start_loc.gpu[1 : count + 1]
        return BatchView(
            req_ids=req_ids,
            starts=np.array(starts),
            query_start=runner.query_start_loc.np[: count + 1],
            slots=np.arange(count),
            row_slots=torch.searchsorted(ends, indices.to(ends.dtype), right=True),
            num_slots=count,
            read=None if cache is None else read,
        )

    if native.available():
        runner.slot_hook = Hook(deltas.begin_step, before_logits, deltas.unstage)
        return
    runner.execute_model = hooked_execute_model
    runner._prepare_inputs = hooked_prepare_inputs
    runner._model_forward = hooked_model_forward


def hook_v2(runner: Any, deltas: Deltas, cache: "HiddenCache | None") -> None:
    """``vllm.v1.worker.gpu.model_runner.GPUModelRunner``."""
    execute_model = runner.execute_model
    sample = runner.sample

    def hooked_execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dummy_run"):
            deltas.begin_step(scheduler_output)
        return execute_model(scheduler_output, *args, **kwargs)

    def hooked_sample(
        hidden_states: torch.Tensor, input_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        before_logits(hidden_states, input_batch)
        try:
            return sample(hidden_states, input_batch, *args, **kwargs)
        finally:
            deltas.unstage()

    def before_logits(hidden_states: torch.Tensor, input_batch: Any) -> None:
        if cache is not None and cache.allocated:
            # Of all requests, as on V1. The mapping is the forward pass's own.
            rows = input_batch.num_tokens
            slots = runner.block_tables.slot_mappings[cache.group(runner.kv_cache_config), :rows]
            cache.write(hidden_states[:rows], slots)
        if not deltas.requests:
            return

        def read(i: int, rows: int) -> torch.Tensor:
            assert cache is not None
            group = cache.group(runner.kv_cache_config)
            blocks = runner.block_tables.block_tables[group].gpu[input_batch.idx_mapping_np[i]]
            return cache.read(blocks, runner.block_tables.block_sizes[group], rows)

        batch = BatchView(
            req_ids=input_batch.req_ids,
            starts=input_batch.num_computed_tokens_np,
            query_start=input_batch.query_start_loc_np,
            slots=input_batch.idx_mapping_np,
            row_slots=input_batch.expanded_idx_mapping,
            num_slots=runner.max_num_reqs,
            read=None if cache is None else read,
        )
        deltas.stage(hidden_states, batch)

    if native.available():
        runner.slot_hook = Hook(deltas.begin_step, before_logits, deltas.unstage)
        return
    runner.execute_model = hooked_execute_model
    runner.sample = hooked_sample


def watch(worker: Any, deltas: Deltas, cache: "HiddenCache | None") -> None:
    """Either runner: say what the hidden states cost once the KV cache is there, and share no delta
    across a change of weights."""

    def report(kv_cache_config: Any) -> None:
        if cache is not None:
            cost = cache.measure(kv_cache_config)
            logger.info("SLOT keeps hidden states in the KV cache: %s", cost.describe())

    def forget_replaced(lora_request: Any) -> None:
        if lora_request.load_inplace:
            deltas.forget_adapter(lora_request.lora_name)

    if native.available():
        worker.slot_hook = WorkerHook(report, deltas.forget_shared, forget_replaced)
        return
    runner = worker.model_runner
    initialize_kv_cache = runner.initialize_kv_cache
    add_lora = worker.add_lora

    def hooked_initialize_kv_cache(kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        initialize_kv_cache(kv_cache_config, *args, **kwargs)
        # Before 0.29 the V2 runner takes nothing else.
        if not kwargs.get("is_profiling", args[0] if args else False):
            report(kv_cache_config)

    def hooked_add_lora(lora_request: Any) -> Any:
        forget_replaced(lora_request)
        return add_lora(lora_request)

    def forgetting(method: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(*args: Any, **kwargs: Any) -> Any:
            deltas.forget_shared()
            return method(*args, **kwargs)

        return hooked

    runner.initialize_kv_cache = hooked_initialize_kv_cache
    worker.add_lora = hooked_add_lora
    for name in CHANGES_WEIGHTS:
        setattr(worker, name, forgetting(getattr(worker, name)))
