"""Which model runner the worker has, and whether it is still the one that runs when start-up ends.

The configuration and the environment say which one is wanted; other plugins and the options that
force V2 have a say, too. So it is the runner that is asked.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from slot_vllm.params import SlotError

logger = logging.getLogger("vllm.slot_vllm")

# By name: with one of them nothing of ours imports the other.
V1 = ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner")
V2 = ("vllm.v1.worker.gpu.model_runner", "GPUModelRunner")


def is_v2(runner: Any) -> bool:
    """Whether it is vLLM's V2 model runner; else it is V1. Raises SlotError if it is neither: it
    would call methods of its own, not those that SLOT replaces on it."""
    names = {(c.__module__, c.__qualname__) for c in type(runner).__mro__}
    if not names & {V1, V2}:
        raise SlotError(
            f"the worker's model runner is {_name(type(runner))}, which is not vLLM's; allowed: "
            f"{'.'.join(V2)}, {'.'.join(V1)}, and what is built on them"
        )
    return V2 in names


def replaced_methods(runner: Any) -> dict[str, Callable[..., Any]]:
    """The methods that SLOT replaced on it."""
    return {name: found for name, found in vars(runner).items() if _is_ours(found)}


def check_in_use(worker: Any, runner: Any, methods: Mapping[str, Callable[..., Any]]) -> None:
    """Raise SlotError if the worker has another runner by now than the one whose ``methods`` were
    replaced; warn of those that another plugin has replaced since."""
    found = worker.model_runner
    if found is not runner:
        raise SlotError(
            f"SLOT is on the model runner that the worker had when its model was loaded; now it "
            f"has {_name(type(found))}, which another plugin put there. It must be there before"
        )
    now = {name: getattr(runner, name) for name in methods}
    others = {name: one for name, one in now.items() if not _calls(one, methods[name])}
    if others:
        logger.warning(
            "SLOT: another plugin replaced %s of the model runner. If that does not call what was "
            "there before, requests have no SLOT",
            ", ".join(f"{name} (by {_name(one)})" for name, one in others.items()),
        )


def _calls(method: Callable[..., Any], ours: Callable[..., Any]) -> bool:
    """Whether it is ours, or says that it calls ours, as functools.wraps has it."""
    return inspect.unwrap(method, stop=lambda one: one is ours) is ours


def _is_ours(method: Any) -> bool:
    return callable(method) and str(getattr(method, "__module__", "")).startswith("slot_vllm.")


def _name(value: Any) -> str:
    return (
        f"{value.__module__}.{value.__qualname__}"
        if hasattr(value, "__qualname__")
        else repr(value)
    )
