"""How the engine is asked, with a stand-in for vLLM."""

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from slot_vllm.evaluation import generation
from slot_vllm.evaluation.generation import Request, VllmEngine


class RunsAhead:
    """Finishes whatever it has been asked before anyone looks; keeps few requests' losses."""

    def __init__(self, kept: int) -> None:
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)
        self.llm_engine = self
        self._kept = kept
        self._asked: list[str] = []
        self._finished: list[str] = []

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self._asked.append(request_id)
        self._finished.append(request_id)

    def step(self) -> list[Any]:
        part = SimpleNamespace(index=0, text="a", token_ids=[1], finish_reason="stop")
        request_id = self._asked.pop(0)
        return [SimpleNamespace(request_id=request_id, outputs=[part], finished=True)]

    def collective_rpc(self, method: str, args: tuple[str]) -> list[list[float] | None]:
        return [[2.0, 1.0] if args[0] in self._finished[-self._kept :] else None]


def test_no_more_requests_at_once_than_losses_are_kept_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "KEPT_LOSSES", 3)
    engine = object.__new__(VllmEngine)
    engine._llm = RunsAhead(kept=3)
    sampling = {"n": 1, "extra_args": {"slot_steps": 1}}
    requests = [Request(str(i), [5, 6], sampling) for i in range(10)]
    completions = list(engine.generate(requests, lambda name, count: None))
    assert [completion.request.id for completion in completions] == [str(i) for i in range(10)]
    assert [completion.losses for completion in completions] == [[2.0, 1.0]] * 10


@pytest.mark.parametrize("said", [None, "1"])
def test_a_run_has_all_cores_unless_told_otherwise(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "VLLM_CPU_NUM_OF_RESERVED_CPU"
    monkeypatch.setenv(name, said or "")
    if said is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr("vllm.LLM", lambda **options: None)
    VllmEngine({"model": "none"})
    assert os.environ[name] == (said or "0")


@pytest.mark.parametrize(
    ("options", "cpu", "eager", "announced"),
    [
        ({}, True, True, False),
        ({"enforce_eager": True}, True, True, False),
        ({"enforce_eager": False}, True, False, True),
        ({"compilation_config": 3}, True, None, True),
        ({"optimization_level": 2}, True, None, True),
        ({"pipeline_parallel_size": 2}, True, None, True),
        ({}, False, None, False),
    ],
)
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(
    options: dict[str, Any],
    cpu: bool,
    eager: bool | None,
    announced: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    started: list[dict[str, Any]] = []

    def start(**given: Any) -> None:
        # Said before it begins.
        assert announced == ("vLLM compiles the model" in caplog.text)
        started.append(given)

    monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    monkeypatch.setattr("vllm.LLM", start)
    monkeypatch.setattr("vllm.platforms.current_platform.is_cpu", lambda: cpu)
    VllmEngine({"model": "none", **options})
    assert [given.get("enforce_eager") for given in started] == [eager]
