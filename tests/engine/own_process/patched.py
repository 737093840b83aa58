"""For a patched vLLM and ``VLLM_PLUGINS=""``: SLOT works, and nothing of vLLM is wrapped."""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.engine import arg_utils
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.generate.generative_scoring.serving import ServingGenerativeScoring
from vllm.entrypoints.generate.structured_decisions.serving import ServingStructuredDecisions
from vllm.entrypoints.serve.instrumentator import metrics as instrumentator
from vllm.sampling_params import BeamSearchParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import input_processor, output_processor
from vllm.v1.worker import gpu_worker

from slot_vllm.engine.contacts import CONTACTS
from slot_vllm.engine.startup import EXTENSION
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import runner_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of
from tests.engine.runner import V2

NEW = 6


def test_this_is_a_patched_vllm_without_the_plugin() -> None:
    from slot_vllm.engine import compat, native
    from slot_vllm.engine.contacts import PARTS

    assert os.environ["VLLM_PLUGINS"] == "" and native.available()
    # What SLOT needs of the release is still there.
    assert compat.missing(*PARTS) == compat.missing_in(compat.installed(), *PARTS) == []


def is_ours(value: Any) -> bool:
    """Whether calling it calls a function of this package: by its globals, because functools.wraps
    copies the name of the module."""
    while value is not None:
        function = getattr(value, "__func__", value)
        if getattr(function, "__globals__", {}).get("__name__", "").startswith("slot_vllm."):
            return True
        value = getattr(function, "__wrapped__", None)
    return False


def replaced(*instances: Any) -> list[str]:
    """What of vLLM is a function of this package: among all contacts, in their classes, and on
    ``instances`` of vLLM's and in their classes."""
    owners: list[Any] = []
    found = []
    for contact in CONTACTS:
        static = value = import_module(contact.path)
        for part in contact.name.split("."):
            static = inspect.getattr_static(value, part, None)
            value = getattr(value, part)
            owners += [value] if inspect.isclass(value) else []
        found += [str(contact)] if is_ours(static) else []
    for instance in instances:
        owners += [instance, *type(instance).__mro__]
    for owner in owners:
        if getattr(owner, "__module__", "").startswith("slot_vllm."):
            continue  # the extension, among the worker's bases
        # What the patch's own calls look for.
        found += [
            f"{owner}.{name}"
            for name, value in vars(owner).items()
            if is_ours(value) and not name.startswith("slot_")
        ]
    return found


# What the plugin wraps of classes and modules.
WRAPPED = (
    (arg_utils.EngineArgs, "create_engine_config"),
    (input_processor.InputProcessor, "__init__"),
    (BeamSearchOfflineMixin, "beam_search"),
    (BeamSearchOnlineMixin, "beam_search"),
    (GenerateBaseServing, "__init__"),
    (ServingGenerativeScoring, "create_generative_scoring"),
    (ServingStructuredDecisions, "create_decision"),
    (instrumentator, "attach_router"),
    (output_processor, "instrument_manual"),
    (output_processor.OutputProcessor, "do_tracing"),
    (output_processor.RequestState, "from_new_request"),
    (gpu_worker.Worker, "load_model"),
)


def test_what_is_replaced_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from slot_vllm.engine import (
        admission,
        beam_search,
        metrics,
        plugin,
        scoring,
        server,
        tracing,
        worker,
    )

    for owner, name in WRAPPED:
        monkeypatch.setattr(owner, name, inspect.getattr_static(owner, name))
    monkeypatch.setattr(plugin.native, "configures", lambda _: False)
    assert replaced() == []
    plugin.register()
    for module in (admission, beam_search, metrics, scoring, server, tracing):
        module.install()
    worker._wrap_load_model()
    found = replaced()
    for _, name in WRAPPED:
        assert any(text.endswith(f".{name}") for text in found), name
    instance = SimpleNamespace(execute_model=admission.admission_of)
    assert any(text.endswith(".execute_model") for text in replaced(instance))


def test_nothing_is_wrapped(tiny_model: str, engine: Callable[..., Any]) -> None:
    from slot_vllm.engine import plugin

    # Where the plugin is loaded, it finds the hooks.
    plugin.register()
    # A server's front end with traces has the most.
    arg_utils.EngineArgs(
        tiny_model,
        enforce_eager=True,
        worker_extension_cls="slot_vllm",
        otlp_traces_endpoint="http://nowhere:4317",
        disable_log_stats=False,
    ).create_engine_config(UsageContext.OPENAI_API_SERVER)
    llm = engine(tiny_model, slot={})
    runner = runner_of(llm)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    processor = llm.llm_engine.input_processor
    assert replaced(runner, worker, processor, runner.model, runner.model.logits_processor) == []


def test_a_server_shows_slot_on_metrics() -> None:
    asked = []

    class EngineClient:
        vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(worker_extension_cls=EXTENSION),
            model_config=SimpleNamespace(served_model_name="m"),
        )

        @property
        def engine_core(self) -> Any:
            asked.append(1)
            raise RuntimeError("no engine")

    for extension, shown in ((None, False), ("slot_vllm", True)):
        app = FastAPI()
        app.state.args = SimpleNamespace(worker_extension_cls=extension)
        instrumentator.attach_router(app)
        app.state.engine_client = EngineClient()
        text = TestClient(app).get("/metrics").text
        assert "python_info" in text
        assert ('vllm:slot_up{model_name="m"} 0.0' in text) == shown == bool(asked)


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
    assert after["bypassed.beam_search"] == before.get("bypassed.beam_search", 0) + 1


@pytest.mark.skipif(V2, reason="start-up is the same for both runners")
def test_start_up(tiny_model: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

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
def test_a_plain_engine_beside_it(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(tiny_model, slot={})
    plain = engine(tiny_model, skip_tokenizer_init=False)
    runner = runner_of(plain)
    assert runner.slot_hook is None and not hasattr(runner, "slot_deltas")
    assert plain.llm_engine.input_processor.slot_admission is None
    case = Case(random_tokens(30, seed=78), 0, 0.1, NEW)
    outputs = run(plain, [case], extra_args=None)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case]))
    # Nor are its beam searches marked.
    processor = plain.llm_engine.input_processor
    process_inputs, seen = processor.process_inputs, []

    def processed(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(params.extra_args)
        return process_inputs(request_id, prompt, params, *args, **kwargs)

    monkeypatch.setattr(processor, "process_inputs", processed)
    prompt = {"prompt_token_ids": list(case.tokens)}
    plain.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=2))
    assert seen and not any(seen)
