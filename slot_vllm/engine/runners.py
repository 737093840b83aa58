"""Where the two model runners are touched. Both end in the same hook: before the step's logits
are computed, ``Deltas`` sees its hidden states and says what each row of logits gets.

Only methods of the given instance are replaced, so other engines of the process keep theirs.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slot_vllm.engine.deltas import BatchView, Deltas

if TYPE_CHECKING:
    from slot_vllm.engine.hidden_cache import HiddenCache

logger = logging.getLogger("vllm.slot_vllm")

# Methods of the worker.
CHANGES_WEIGHTS = ("reload_weights", "update_weights", "finish_weight_update", "sleep", "wake_up")


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
        indices = logits_indices.pop()
        hidden_states = output[0] if isinstance(output, tuple) else output
        if cache is not None:
            # Of all requests: whoever hits these blocks later may have SLOT.
            rows = int(runner.query_start_loc.np[runner.input_batch.num_reqs])
            slots = block_table(cache).slot_mapping.gpu[:rows]
            cache.write(hidden_states[:rows], slots)
        if deltas.requests:
            deltas.stage(hidden_states, view(indices))
        return output

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
        if cache is not None and cache.allocated:
            # Of all requests, as on V1. The mapping is the forward pass's own.
            rows = input_batch.num_tokens
            slots = runner.block_tables.slot_mappings[cache.group(runner.kv_cache_config), :rows]
            cache.write(hidden_states[:rows], slots)
        if not deltas.requests:
            return sample(hidden_states, input_batch, *args, **kwargs)

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
        try:
            return sample(hidden_states, input_batch, *args, **kwargs)
        finally:
            deltas.unstage()

    runner.execute_model = hooked_execute_model
    runner.sample = hooked_sample


def watch(worker: Any, deltas: Deltas, cache: "HiddenCache | None") -> None:
    """Either runner: say what the hidden states cost once the KV cache is there, and share no delta
    across a change of weights."""
    runner = worker.model_runner
    initialize_kv_cache = runner.initialize_kv_cache
    add_lora = worker.add_lora

    def hooked_initialize_kv_cache(kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        initialize_kv_cache(kv_cache_config, *args, **kwargs)
        # Before 0.29 the V2 runner takes nothing else.
        is_profiling = kwargs.get("is_profiling", args[0] if args else False)
        if cache is not None and not is_profiling:
            cost = cache.measure(kv_cache_config)
            logger.info("SLOT keeps hidden states in the KV cache: %s", cost.describe())

    def hooked_add_lora(lora_request: Any) -> Any:
        if lora_request.load_inplace:
            deltas.forget_adapter(lora_request.lora_name)
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
