from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.runners import CHANGES_WEIGHTS, hook_v2, watch


@pytest.mark.parametrize("name", CHANGES_WEIGHTS)
def test_no_delta_is_shared_across_a_change_of_weights(name: str) -> None:
    from vllm.v1.worker.gpu_worker import Worker

    assert hasattr(Worker, name)
    happened: list[str] = []

    def method(*args: Any) -> str:
        happened.append(name)
        return "done"

    worker = SimpleNamespace(
        model_runner=SimpleNamespace(initialize_kv_cache=None),
        compile_or_warm_up_model=None,
        add_lora=lambda request: True,
        **dict.fromkeys(CHANGES_WEIGHTS, method),
    )
    state: Any = SimpleNamespace(
        sharing=SimpleNamespace(forget=lambda: happened.append("forgotten")),
        registry=SimpleNamespace(change_adapter=happened.append),
    )
    watch(worker, state, None)
    assert getattr(worker, name)() == "done"
    assert happened == ["forgotten", name]
    for again in (False, True):
        assert worker.add_lora(SimpleNamespace(lora_name="x", load_inplace=again))
    assert happened[2:] == ["x"]


def test_vllms_own_warm_up_is_no_request() -> None:
    state: Any = SimpleNamespace(step=SimpleNamespace(serving=True))
    seen: list[bool] = []
    worker = SimpleNamespace(
        model_runner=SimpleNamespace(initialize_kv_cache=None),
        compile_or_warm_up_model=lambda: seen.append(state.step.serving),
        add_lora=None,
        **dict.fromkeys(CHANGES_WEIGHTS, None),
    )
    watch(worker, state, None)
    worker.compile_or_warm_up_model()
    assert seen == [False]
    assert state.step.serving


class Runner:
    max_num_reqs = 8

    def execute_model(self, scheduler_output: Any) -> None: ...

    def sample(self, hidden_states: torch.Tensor, input_batch: Any) -> str:
        return "sampled"


@pytest.mark.parametrize(
    ("sharder", "slots", "rows"),
    [
        (None, [1, 0, 0, 2, 3], [3, 7, 8, 12, 20]),
        # Those of slots 0 and 2, which the first rank samples, then the second one's.
        (SimpleNamespace(tp_size=2), [0, 0, 2, 1, 3], [7, 8, 12, 3, 20]),
    ],
)
def test_rows_of_logits_come_in_the_order_in_which_ranks_sample(
    sharder: Any, slots: list[int], rows: list[int]
) -> None:
    seen: list[BatchView] = []
    step: Any = SimpleNamespace(
        registry=SimpleNamespace(with_slot=["a"]),
        stage=lambda hidden_states, view: seen.append(view()),
        unstage=lambda: None,
    )
    runner: Any = Runner()
    runner.batch_sharder = sharder
    hook_v2(runner, step, None)
    batch = SimpleNamespace(
        req_ids=["a", "b", "c", "d"],
        num_computed_tokens_np=np.zeros(4),
        query_start_loc_np=np.array([0, 4, 9, 13, 21]),
        idx_mapping_np=np.array([1, 0, 2, 3]),
        expanded_idx_mapping=torch.tensor([1, 0, 0, 2, 3]),
        logits_indices=torch.tensor([3, 7, 8, 12, 20]),
        positions=torch.arange(21) + 100,
    )
    assert runner.sample(torch.zeros(21, 4), batch) == "sampled"
    (view,) = seen
    assert view.row_slots.tolist() == slots
    assert [position - 100 for position in view.positions().tolist()] == rows
