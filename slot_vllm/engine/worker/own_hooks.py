"""Hooks of vLLM's own, which it has where it was patched with one of ``patches/``."""

import inspect
from collections.abc import Mapping

from slot_vllm.params import SlotError


def has_own_hooks(owner: type, calls: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether methods of ``owner``, a class of vLLM's, call a ``slot_hook``. calls: by method, what
    stands in its source then. Raises SlotError if only a part of it does: there SLOT would do
    nothing, without a word."""
    found = {
        f"{owner.__name__}.{method}: {text}": text in inspect.getsource(getattr(owner, method))
        for method, texts in calls.items()
        for text in texts
    }
    if any(found.values()) and not all(found.values()):
        lacking = ", ".join(call for call, there in found.items() if not there)
        raise SlotError(
            f"this vLLM was patched for SLOT in part; it lacks {lacking}; "
            "say `bash scripts/patch_vllm.sh revert`, and apply if the patch is wanted"
        )
    return all(found.values())
