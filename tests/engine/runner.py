"""vLLM's model runner of the engine tests: with ``SLOT_TEST_RUNNER=v2`` it is V2, on a CPU under
Triton's interpreter. Imported before vLLM."""

import os
from pathlib import Path
from typing import Any

V2 = os.environ.get("SLOT_TEST_RUNNER") == "v2"


def python_path() -> str:
    """``PYTHONPATH`` of processes that vLLM starts: they find the tests' own extensions and, on V2,
    begin with the interpreter."""
    here = Path(__file__).parent
    interpreter = [here / "own_process/interpreter"] if V2 else []
    paths = (*interpreter, here.parents[1], os.environ.get("PYTHONPATH", ""))
    return os.pathsep.join(filter(None, map(str, paths)))


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

    import tests.triton_interpreter  # noqa: F401

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
