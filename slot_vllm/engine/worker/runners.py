"""Where the two model runners are touched. Both end in the same hook: before the step's logits
are computed, ``Step`` sees its hidden states and says what each row of logits gets.

Only methods of the given instance are replaced, so other engines of the process keep theirs; a
patched vLLM (``own_hooks``) calls the hook itself. What is raised in what we add is contained; what
vLLM's own method raises passes through.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slot_vllm.engine.vllm_contract.wraps import over
from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.cpu_generators import keep_states
from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.own_hooks import has_own_hooks
from slot_vllm.engine.worker.runner_in_use import check_in_use, replaced_methods
from slot_vllm.engine.worker.runner_state import RunnerState
from slot_vllm.engine.worker.step import Step

if TYPE_CHECKING:
    from slot_vllm.engine.worker.hidden_cache import HiddenCache

logger = logging.getLogger("vllm.slot_vllm")

# What a patched runner's methods call.
V1_CALLS = {"execute_model": ("slot_hook.begin_step(", "slot_hook.before_logits(")}
V2_CALLS = {
    "execute_model": ("slot_hook.begin_step(",),
    "sample": ("slot_hook.before_logits(", "slot_hook.after_logits("),
}
# Methods of the worker.
CHANGES_WEIGHTS = (
    "reload_weights",
    "reset_weights",
    "update_weights",
    "finish_weight_update",
    "sleep",
    "wake_up",
)


@dataclass(frozen=True)
class Hook:
    """What a patched vLLM finds as ``runner.slot_hook`` and calls.

    begin_step(scheduler_output): before a step. before_logits: V1, (model_output, logits_indices);
    V2, (hidden_states, input_batch). after_logits(): V2, once they are made.
    """

    begin_step: Callable[..., None]
    before_logits: Callable[..., None]
    after_logits: Callable[[], None]


def hook_v1(runner: Any, step: Step, cache: "HiddenCache | None") -> None:
    """``vllm.v1.worker.gpu_model_runner.GPUModelRunner``."""
    prepared: list[Any] = []

    def before_logits(output: Any, logits_indices: Callable[[], torch.Tensor]) -> None:
        hidden_states = output[0] if isinstance(output, tuple) else output
        if runner.input_batch.generators and runner.device.type == "cpu":
            with step.failures.contained("batch", "vLLM cannot rewind a seeded request"):
                keep_states(runner)
        if cache is not None:
            write(cache, step, hidden_states, lambda: slots(cache))
        if step.registry.with_slot:
            step.stage(hidden_states, lambda: view(logits_indices()))

    def slots(cache: "HiddenCache") -> torch.Tensor:
        rows = int(runner.query_start_loc.np[runner.input_batch.num_reqs])
        mapping: torch.Tensor = block_table(cache).slot_mapping.gpu[:rows]
        return mapping

    def block_table(cache: "HiddenCache") -> Any:
        return runner.input_batch.block_table[cache.group(runner.kv_cache_config)]

    def read(i: int, start: int, stop: int) -> torch.Tensor:
        assert cache is not None
        table = block_table(cache)
        return cache.read(table.block_table.gpu[i], table.block_size, start, stop)

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
            positions=lambda: runner.positions[indices],
            read=None if cache is None else read,
        )

    if has_own_hooks(type(runner), V1_CALLS):
        runner.slot_hook = Hook(
            step.begin_step,
            lambda output, indices: before_logits(output, lambda: indices),
            step.unstage,
        )
        return

    @over(runner, "execute_model")
    def execute_model(original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        step.begin_step(scheduler_output)
        return original(scheduler_output, *args, **kwargs)

    @over(runner, "_prepare_inputs")
    def prepare_inputs(original: Any, *args: Any, **kwargs: Any) -> Any:
        prepared[:] = [original(*args, **kwargs)]
        return prepared[0]

    @over(runner, "_model_forward")
    def model_forward(original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        inputs = prepared.copy()
        prepared.clear()
        before_logits(output, lambda: inputs[0][0])
        return output


def hook_v2(runner: Any, step: Step, cache: "HiddenCache | None") -> None:
    """``vllm.v1.worker.gpu.model_runner.GPUModelRunner``."""

    def before_logits(hidden_states: torch.Tensor, input_batch: Any) -> None:
        if cache is not None and cache.allocated:
            write(cache, step, hidden_states, lambda: slots(cache, input_batch.num_tokens))
        if step.registry.with_slot:
            step.stage(hidden_states, lambda: view(input_batch))

    def slots(cache: "HiddenCache", rows: int) -> torch.Tensor:
        # The mapping is the forward pass's own.
        group = cache.group(runner.kv_cache_config)
        mapping: torch.Tensor = runner.block_tables.slot_mappings[group, :rows]
        return mapping

    def view(input_batch: Any) -> BatchView:
        def read(i: int, start: int, stop: int) -> torch.Tensor:
            assert cache is not None
            group = cache.group(runner.kv_cache_config)
            blocks = runner.block_tables.block_tables[group].gpu[input_batch.idx_mapping_np[i]]
            return cache.read(blocks, runner.block_tables.block_sizes[group], start, stop)

        row_slots, indices = input_batch.expanded_idx_mapping, input_batch.logits_indices
        if (sharder := runner.batch_sharder) is not None:
            # Each rank samples some of the requests, and their rows of logits are together.
            order = torch.argsort(row_slots % sharder.tp_size, stable=True)
            row_slots, indices = row_slots[order], indices[order]
        return BatchView(
            req_ids=input_batch.req_ids,
            starts=input_batch.num_computed_tokens_np,
            query_start=input_batch.query_start_loc_np,
            slots=input_batch.idx_mapping_np,
            row_slots=row_slots,
            num_slots=runner.max_num_reqs,
            positions=lambda: input_batch.positions[indices],
            read=None if cache is None else read,
        )

    if has_own_hooks(type(runner), V2_CALLS):
        runner.slot_hook = Hook(step.begin_step, before_logits, step.unstage)
        return

    @over(runner, "execute_model")
    def execute_model(original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dummy_run"):
            step.begin_step(scheduler_output)
        return original(scheduler_output, *args, **kwargs)

    @over(runner, "sample")
    def sample(
        original: Any, hidden_states: torch.Tensor, input_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        before_logits(hidden_states, input_batch)
        try:
            return original(hidden_states, input_batch, *args, **kwargs)
        finally:
            step.unstage()


def write(
    cache: "HiddenCache",
    step: Step,
    hidden_states: torch.Tensor,
    slots: Callable[[], torch.Tensor],
) -> None:
    """Keep the step's hidden states, of all requests: whoever hits these blocks later may have
    SLOT. slots: gives vLLM's slot mapping, (r,)."""
    try:
        mapping = slots()
        cache.write(hidden_states[: len(mapping)], mapping)
    except Exception as error:
        cache.invalidate(slots)
        # Other ranks hear of it when a prompt needs these rows.
        step.not_written(Failure.of(error, "hidden_cache"))


def watch(worker: Any, state: RunnerState, cache: "HiddenCache | None") -> None:
    """Either runner: say what the hidden states cost once the KV cache is there, look whether it is
    still the runner that runs, take no notice of vLLM's own warm-up requests, and share no delta
    across a change of weights."""

    runner = worker.model_runner
    replaced = replaced_methods(runner)

    @over(runner, "initialize_kv_cache")
    def initialize_kv_cache(
        original: Any, kv_cache_config: Any, is_profiling: bool = False, *args: Any, **kwargs: Any
    ) -> None:
        original(kv_cache_config, is_profiling, *args, **kwargs)
        if cache is not None and not is_profiling:
            cost = cache.measure(kv_cache_config)
            logger.info("SLOT keeps hidden states in the KV cache: %s", cost.describe())

    @over(worker, "compile_or_warm_up_model")
    def warm_up(original: Any, *args: Any, **kwargs: Any) -> Any:
        # The end of start-up, for every worker.
        check_in_use(worker, runner, replaced)
        state.step.serving = False
        try:
            return original(*args, **kwargs)
        finally:
            state.step.serving = True

    @over(worker, "add_lora")
    def add_lora(original: Any, lora_request: Any) -> Any:
        if lora_request.load_inplace:
            state.registry.change_adapter(lora_request.lora_name)
        return original(lora_request)

    def change_weights(original: Any, *args: Any, **kwargs: Any) -> Any:
        state.sharing.forget()
        return original(*args, **kwargs)

    for name in CHANGES_WEIGHTS:
        # There is no reset_weights before 0.32.
        if hasattr(worker, name):
            over(worker, name)(change_weights)
