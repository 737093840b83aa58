"""How something of ours takes the place of something of vLLM's, which it calls."""

import functools
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Decorates what takes the place of ``owner.name``, of a class or a module, once, and takes
    that before its own arguments. Idempotent: functools.wraps hands its mark on to wrappers that
    others put around it."""
    original = getattr(owner, name)

    def put(wrapper: Callable[..., Any]) -> None:
        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        if not hasattr(original, "slot_vllm_wrapper"):
            wrapped.slot_vllm_wrapper = True  # type: ignore[attr-defined]
            setattr(owner, name, wrapped)

    return put


def over(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """The same of a method of one object alone."""
    original = getattr(owner, name)

    def put(wrapper: Callable[..., Any]) -> None:
        # A function of this module, by which it is known as ours.
        setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))

    return put
