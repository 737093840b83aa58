"""SLOT inside vLLM: one delta per request, learned from the request's own prompt."""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from slot_vllm.engine.worker.extension import SlotWorkerExtension

__all__ = ["SlotWorkerExtension", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy: the optimizer and the evaluation's configs must import without vLLM.
    if name == "SlotWorkerExtension":
        from slot_vllm.engine.worker.extension import SlotWorkerExtension

        return SlotWorkerExtension
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
