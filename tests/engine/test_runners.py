from types import SimpleNamespace
from typing import Any

import pytest

from slot_vllm.engine.worker.runners import CHANGES_WEIGHTS, watch


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
