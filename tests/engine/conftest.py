"""In-process vLLM engines, shared by the tests of a session.

``SLOT_TEST_RUNNER=v2`` runs vLLM's V2 model runner, on a CPU under Triton's interpreter.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

V2 = os.environ.get("SLOT_TEST_RUNNER") == "v2"


def _enable_v2() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    # Tensor parallelism and some models fail under dynamo with the interpreter.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import triton

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    class Backend:
        driver = Driver
        compiler = None

    triton.backends.backends["cpu"] = Backend

    # N-gram drafts and grammar bitmasks use integer masks, which the interpreter refuses.
    from triton.runtime.interpreter import InterpreterBuilder

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def masked_load(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *args)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *args)

    InterpreterBuilder.create_masked_load = masked_load
    InterpreterBuilder.create_masked_store = masked_store


if V2:
    _enable_v2()
# It would override the engines' own kv_cache_memory_bytes.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)

# Small enough that the mixed cases are chunked and preempted.
SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 320,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
    "block_size": 32,
    "num_gpu_blocks_override": 14,
    "kv_cache_memory_bytes": 1 << 26,
}
SLOT = {"workspace_mb": 8, "keep_deltas": 64, "report_loss": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[Callable[..., Any]]:
    """engine(model, slot={...} or None for a plain engine, **options): equal calls in a module get
    the same engine."""
    engines: dict[str, Any] = {}

    def get(model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        key = repr((model, slot, sorted(options.items())))
        if key not in engines:
            from vllm import LLM

            extra = (
                {}
                if slot is None
                else {
                    "worker_extension_cls": "slot_vllm.SlotWorkerExtension",
                    "additional_config": {"slot": {**SLOT, **slot}},
                }
            )
            engines[key] = LLM(model, **{**SMALL, **options, **extra})
        return engines[key]

    yield get
    for llm in engines.values():
        llm.llm_engine.engine_core.shutdown()
    engines.clear()
    gc.collect()


@pytest.fixture
def slot_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What we log, once each, whether or not vLLM's loggers hand on to the root in this process."""
    logger = logging.getLogger("vllm.slot_vllm")
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def runner_of(llm: Any) -> Any:
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler
