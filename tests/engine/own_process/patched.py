"""For a patched vLLM and ``VLLM_PLUGINS=""``: SLOT works, and nothing of vLLM is wrapped."""

import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.worker import gpu_worker

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.conftest import V2, runner_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of

NEW = 6


def test_this_is_a_patched_vllm_without_the_plugin() -> None:
    from slot_vllm.engine import compat, native
    from slot_vllm.engine.contacts import PARTS

    assert os.environ["VLLM_PLUGINS"] == "" and native.available()
    # What SLOT needs of the release is still there.
    assert compat.missing(*PARTS) == compat.missing_in(compat.installed(), *PARTS) == []


def ours(owner: Any) -> list[str]:
    """The attributes that replace a method of vLLM's: functions of this package."""
    return [
        name
        for name, value in vars(owner).items()
        if callable(value)
        and getattr(value, "__module__", "").startswith("slot_vllm.")
        # What the patch's own calls look for.
        and name not in ("slot_hook", "slot_admission", "slot_deltas", "slot_hidden_cache")
    ]


def test_nothing_is_wrapped(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    from slot_vllm.engine import plugin

    # Where the plugin is loaded, it finds the hooks.
    plugin.register()
    llm = engine(tiny_model, slot={})
    classes = (
        EngineArgs,
        InputProcessor,
        GenerateBaseServing,
        BeamSearchOfflineMixin,
        BeamSearchOnlineMixin,
        Worker,
    )
    runner = runner_of(llm)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    instances = (runner, worker, llm.llm_engine.input_processor, runner.model.logits_processor)
    assert [(owner, ours(owner)) for owner in (*classes, *instances) if ours(owner)] == []
    for function in (EngineArgs.create_engine_config, InputProcessor.__init__, Worker.load_model):
        assert not hasattr(function, "slot_vllm_wrapper")
    assert "forward" not in vars(runner.model.logits_processor)


def test_tokens_and_deltas(tiny_model: str, engine: Callable[..., Any]) -> None:
    settings = ((5, 0.5), (0, 0.1), (3, 0.1))
    cases = [
        Case(random_tokens(n, seed=3000 + n), *settings[i % 3], NEW)
        for i, n in enumerate((1, 33, 70, 9, 50, 100))
    ]
    expected = reference(tiny_model, cases)
    llm = engine(tiny_model, slot={})
    outputs = run(llm, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    # Read back from the KV cache.
    llm.collective_rpc("slot_forget_shared")
    again = run(llm, cases)
    assert tokens_of(again) == tokens_of(outputs)
    assert stats_of(llm)["hidden_rows_cached"] > 0


def test_the_published_rounding(tiny_model: str, engine: Callable[..., Any]) -> None:
    case = Case(random_tokens(60, seed=51), 5, 0.1, NEW)
    params = sampling_params(case)
    params.extra_args = {**params.extra_args, "slot_rounding": "model"}
    prompt = {"prompt_token_ids": list(case.tokens)}
    outputs = engine(tiny_model, slot={}).generate([prompt], [params], use_tqdm=False)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case]))


def test_bad_settings_and_beam_search(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    llm = engine(tiny_model, slot={}, skip_tokenizer_init=False)
    bad = sampling_params(Case(random_tokens(5, seed=1), 5, 0.1, 2))
    bad.extra_args = {"slot_steps": -1}
    with pytest.raises(VLLMValidationError, match="slot_steps=-1"):
        llm.generate([{"prompt_token_ids": [5, 6]}], [bad], use_tqdm=False)
    before = stats_of(llm)
    prompt = {"prompt_token_ids": list(random_tokens(20, seed=2))}
    llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=3))
    after = stats_of(llm)
    assert after["optimized"] == before["optimized"]
    assert after["bypassed.beam_search"] > before.get("bypassed.beam_search", 0)


@pytest.mark.skipif(V2, reason="start-up is the same for both runners")
def test_start_up(tiny_model: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from slot_vllm.engine.startup import EXTENSION
    from slot_vllm.params import SlotError

    bare = EngineArgs(tiny_model, enforce_eager=True, worker_extension_cls="slot_vllm")
    config = bare.create_engine_config()
    assert config.parallel_config.worker_extension_cls == EXTENSION
    for options, part in (
        ({"worker_extension_cls": "slot_vllm", "kv_sharing_fast_prefill": True}, "fast-prefill"),
        ({"additional_config": {"slot": {}}}, "add --worker-extension slot_vllm"),
    ):
        with pytest.raises(SlotError, match=part):
            EngineArgs(tiny_model, enforce_eager=True, **options).create_engine_config()


@pytest.mark.skipif(V2, reason="the worker is the same for both runners")
def test_no_delta_is_shared_across_a_change_of_weights(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={})
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    runner = runner_of(llm)
    run(llm, [Case(random_tokens(30, seed=77), 5, 0.1, 1)])
    assert stats_of(llm)["shared_deltas"]
    monkeypatch.setattr(runner, "reload_weights", lambda: None)
    monkeypatch.setattr(gpu_worker, "zero_weights", lambda model: None)
    worker.reload_weights()
    assert stats_of(llm)["shared_deltas"] == 0
    run(llm, [Case(random_tokens(30, seed=77), 5, 0.1, 1)])
    assert stats_of(llm)["shared_deltas"]
    worker.reset_weights()
    assert stats_of(llm)["shared_deltas"] == 0
    monkeypatch.setattr(runner, "add_lora", lambda request: True)
    epochs = runner.slot_deltas._adapter_epochs
    for again in (False, True):
        worker.add_lora(SimpleNamespace(lora_name="adapter", load_inplace=again))
    assert epochs["adapter"] == 1


@pytest.mark.skipif(V2, reason="the worker is the same for both runners")
def test_vllms_own_warm_up_is_no_request(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    deltas = runner_of(llm).slot_deltas
    seen: list[bool] = []
    # A CPU's worker has a warm-up of its own, without requests.
    warming = SimpleNamespace(
        slot_hook=worker.slot_hook,
        _compile_or_warm_up_model=lambda: seen.append(deltas.serving),
    )
    gpu_worker.Worker.compile_or_warm_up_model(warming)
    assert seen == [False] and deltas.serving


@pytest.mark.skipif(V2, reason="what fails is contained by the same function")
def test_failures_are_contained_and_limits_hold(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slot_vllm.engine import linear_head
    from slot_vllm.engine.scheduler import LimitedCompletions

    llm = engine(tiny_model, slot={"max_concurrent": 1, "max_prompt_tokens": 100})
    assert isinstance(llm.llm_engine.engine_core.engine_core.scheduler, LimitedCompletions)
    case = Case(random_tokens(30, seed=79), 5, 0.1, NEW)

    def fail(*args: Any) -> Any:
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(linear_head, "add_bias_rows", fail)
        outputs = run(llm, [case])
    plain = replace(case, steps=0)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [plain]))
    assert stats_of(llm)["failed.logits"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(runner_of(llm).slot_deltas, "_arrive", fail)
        run(llm, [replace(case, tokens=case.tokens[1:])])
    assert stats_of(llm)["failed.arrival"] == 1
    again = replace(case, tokens=case.tokens[2:])
    assert_tokens_equal(tokens_of(run(llm, [again])), reference(tiny_model, [again]))


@pytest.mark.skipif(V2, reason="one runner is enough")
def test_a_plain_engine_beside_it(tiny_model: str, engine: Callable[..., Any]) -> None:
    engine(tiny_model, slot={})
    plain = engine(tiny_model)
    runner = runner_of(plain)
    assert runner.slot_hook is None and not hasattr(runner, "slot_deltas")
    assert plain.llm_engine.input_processor.slot_admission is None
    case = Case(random_tokens(30, seed=78), 0, 0.1, NEW)
    outputs = run(plain, [case], extra_args=None)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case]))
