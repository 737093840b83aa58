"""Another plugin in the process: a package that vLLM finds, wraps the model runner's methods before
SLOT and after it, has a worker extension of its own, and says by environment which runner to use.

In a process of its own, because it changes vLLM's classes.
"""

import builtins
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import starts
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import SLOT, runner_of
from tests.engine.generate import delta_of, run, stats_of, tokens_of
from tests.engine.runner import V2

V1_MODULES = ("gpu_model_runner", "gpu_input_batch", "block_table", "cpu_model_runner")
NEW = 6
BOTH: dict[str, Any] = {
    "worker_extension_cls": "other_plugin.Both",
    "additional_config": {"slot": SLOT},
}
PLUGIN = """
from slot_vllm import SlotWorkerExtension

before, after = [], []

class Counting:
    def other_counts(self):
        return len(before), len(after)

class Both(Counting, SlotWorkerExtension):
    pass

def register():
    from vllm.v1.worker.gpu_worker import Worker
    if {v2}:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    execute_model = GPUModelRunner.execute_model
    if hasattr(execute_model, "of_other"):
        return

    def counted(self, *args, **kwargs):
        before.append(1)
        return execute_model(self, *args, **kwargs)

    counted.of_other = True
    GPUModelRunner.execute_model = counted
    make_runner = Worker.load_model

    def load_model(self, *args, **kwargs):
        make_runner(self, *args, **kwargs)
        runner = self.model_runner
        inner = runner.execute_model

        def unmarked(*args, **kwargs):
            after.append(1)
            return inner(*args, **kwargs)

        runner.execute_model = unmarked

    Worker.load_model = load_model
"""
ENTRY_POINTS = "[vllm.general_plugins]\nother_plugin = other_plugin:register\n"


@pytest.fixture(scope="module")
@starts
def other_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("other")
    (folder / "other_plugin.py").write_text(PLUGIN.format(v2=V2))
    metadata = folder / "other_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def v1_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is ours: importing a module of the V1 runner fails with V2."""
    if not V2:
        return
    forbidden = {f"vllm.v1.worker.{name}" for name in V1_MODULES}
    own_import, import_module = builtins.__import__, importlib.import_module

    def check(name: str, caller: str, names: Any = ()) -> None:
        found = {name, *(f"{name}.{part}" for part in names or ())} & forbidden
        if found and caller.startswith("slot_vllm"):
            raise ImportError(f"{caller} imports {found}")

    def checked_import(name: str, *args: Any, **kwargs: Any) -> Any:
        scope, _, names, *_ = (*args, *(None,) * 3)
        scope = scope or kwargs.get("globals") or {}
        check(name, str(scope.get("__name__")), names or kwargs.get("fromlist"))
        return own_import(name, *args, **kwargs)

    def checked_import_module(name: str, package: str | None = None) -> Any:
        check(name, sys._getframe(1).f_globals.get("__name__", ""))
        return import_module(name, package)

    monkeypatch.setattr(builtins, "__import__", checked_import)
    monkeypatch.setattr(importlib, "import_module", checked_import_module)


def test_two_plugins(
    other_plugin: None,
    v1_is_out_of_reach: None,
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [Case(random_tokens(n, 5000 + n), s, 0.3, NEW) for n, s in ((70, 5), (20, 0), (9, 3))]
    expected = reference(tiny_model, cases)
    said: list[str] = []
    # A new engine takes the handlers of vLLM's loggers.
    logger = logging.getLogger("vllm.slot_vllm")
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    llm = engine(tiny_model, **BOTH)
    said = [text for text in said if "another plugin replaced" in text]
    assert len(said) == 3, said
    for name in (
        "Worker.load_model by other_plugin.register.<locals>.load_model.",
        "GPUModelRunner.execute_model by other_plugin.register.<locals>.counted.",
        "execute_model (by other_plugin.register.<locals>.load_model.<locals>.unmarked)",
    ):
        assert sum(name in text for text in said) == 1, said
    (counts,) = llm.collective_rpc("other_counts")
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    assert [stats_of(llm)[name] for name in ("optimized", "failed")] == [2, 0]
    (later,) = llm.collective_rpc("other_counts")
    # Each step passes both of the other's wraps: the one inside ours and the one outside.
    assert later[0] - counts[0] == later[1] - counts[1] >= NEW


@pytest.mark.skipif(not V2, reason="an option that forces V2")
def test_an_option_that_forces_v2(
    other_plugin: None,
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    case = Case(random_tokens(40, 5100), 5, 0.3, NEW)
    llm = engine(tiny_model, **BOTH, watermark_config={"key": 7})
    assert isinstance(runner_of(llm), GPUModelRunner)
    outputs = run(llm, [case])
    (answer,) = reference(tiny_model, [case])
    assert_tokens_equal(tokens_of(outputs), [answer])
    assert_delta_equal(delta_of(llm, outputs[0]), answer, case.lr)
