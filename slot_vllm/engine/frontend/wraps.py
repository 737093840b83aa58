"""Wrappers that are put on once."""

from typing import Any


def mark(wrapper: Any) -> Any:
    """Mark a wrapper of ours, so that it is put on once; functools.wraps hands the mark on to
    wrappers that others put around it."""
    wrapper.slot_vllm_wrapper = True
    return wrapper


def is_wrapped(function: Any) -> bool:
    return hasattr(function, "slot_vllm_wrapper")
