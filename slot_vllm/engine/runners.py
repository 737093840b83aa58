"""Where the two model runners are touched. Both end in the same hook: before the step's logits
are computed, ``Deltas`` sees its hidden states and says what each row of logits gets.

Only methods of the given instance are replaced, so other engines of the process keep theirs.
"""

from typing import Any

import numpy as np
import torch

from slot_vllm.engine.deltas import BatchView, Deltas


def hook_v1(runner: Any, deltas: Deltas) -> None:
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
        if deltas.requests:
            hidden_states = output[0] if isinstance(output, tuple) else output
            deltas.stage(hidden_states, view(indices))
        return output

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
        )

    runner.execute_model = hooked_execute_model
    runner._prepare_inputs = hooked_prepare_inputs
    runner._model_forward = hooked_model_forward


def hook_v2(runner: Any, deltas: Deltas) -> None:
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
        if not deltas.requests:
            return sample(hidden_states, input_batch, *args, **kwargs)
        batch = BatchView(
            req_ids=input_batch.req_ids,
            starts=input_batch.num_computed_tokens_np,
            query_start=input_batch.query_start_loc_np,
            slots=input_batch.idx_mapping_np,
            row_slots=input_batch.expanded_idx_mapping,
            num_slots=runner.max_num_reqs,
        )
        deltas.stage(hidden_states, batch)
        try:
            return sample(hidden_states, input_batch, *args, **kwargs)
        finally:
            deltas.unstage()

    runner.execute_model = hooked_execute_model
    runner.sample = hooked_sample
