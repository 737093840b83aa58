"""Which model runner SLOT is on, and what others did to it since."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest

from slot_vllm.engine.worker.runner_in_use import V1, V2, check_in_use, is_v2, replaced_methods
from slot_vllm.params import SlotError


def runner_of_class(module: str, name: str) -> Any:
    base = type(name, (), {"__module__": module, "__qualname__": name})
    # As on a CPU, or of another plugin.
    return type("Runner", (base,), {"execute_model": lambda self: "done"})()


def test_the_runner_is_known_by_its_class() -> None:
    assert is_v2(runner_of_class(*V2))
    assert not is_v2(runner_of_class(*V1))
    with pytest.raises(
        SlotError, match=r"model runner is .*Runner, which is not vLLM's; allowed: "
    ):
        is_v2(runner_of_class("other.plugin", "GPUModelRunner"))


def test_vllm_has_these_runners() -> None:
    from vllm.v1.worker.cpu.model_runner import CPUModelRunner as CpuV2
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner as CpuV1

    assert is_v2(object.__new__(CpuV2))
    assert not is_v2(object.__new__(CpuV1))


def hooked() -> tuple[Any, Any, dict[str, Any]]:
    """A worker, its runner and the method that SLOT replaced on that."""
    runner = runner_of_class(*V2)
    execute_model = runner.execute_model

    def ours() -> Any:
        return execute_model()

    ours.__module__ = "slot_vllm.engine.worker.runners"
    runner.execute_model = ours
    runner.theirs = len
    methods = replaced_methods(runner)
    assert methods == {"execute_model": ours}
    return SimpleNamespace(model_runner=runner), runner, methods


def test_nothing_is_said_of_what_calls_ours(slot_log: pytest.LogCaptureFixture) -> None:
    worker, runner, methods = hooked()
    check_in_use(worker, runner, methods)
    ours = runner.execute_model
    runner.execute_model = functools.wraps(ours)(lambda: ours())
    check_in_use(worker, runner, methods)
    assert not slot_log.records


def test_what_replaced_ours_is_named(slot_log: pytest.LogCaptureFixture) -> None:
    worker, runner, methods = hooked()
    runner.execute_model = replacement
    check_in_use(worker, runner, methods)
    (record,) = slot_log.records
    assert record.levelname == "WARNING"
    assert f"execute_model (by {__name__}.replacement) of the model runner" in record.getMessage()


def replacement() -> str:
    return "other"


def test_another_runner_in_its_place_is_refused() -> None:
    worker, runner, methods = hooked()

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

    worker.model_runner = Proxy()
    with pytest.raises(SlotError, match=r"now it has .*Proxy, which another plugin put there"):
        check_in_use(worker, runner, methods)
