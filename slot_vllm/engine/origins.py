"""Requests that vLLM submits itself, for a search or for scores: SLOT must not learn on them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# In the extra_args of the requests of a patched vLLM, which sets no context.
MARK = "slot.origin"


class Origin:
    """What submits requests. reason: why they have no SLOT, also the counter's name. prompts: how
    many of them count, of which each prompt has at least one; None: all."""

    def __init__(self, reason: str, prompts: int | None = None) -> None:
        self.reason = reason
        self._left = prompts

    def __deepcopy__(self, memo: Any) -> "Origin":
        # vLLM copies the parameters of each request; they count together.
        return self

    def counts(self) -> bool:
        """Whether the next request counts; to be asked once for each."""
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0


_current: ContextVar[Origin | None] = ContextVar("slot_vllm_origin", default=None)


@contextmanager
def submitting(origin: Origin) -> Iterator[None]:
    """Requests that are submitted within, also by tasks that are created within, are of it."""
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)


def origin_of(extra_args: Mapping[str, Any] | None) -> Origin | None:
    """Of the request that is being submitted; None for one that a caller asked for."""
    mark = (extra_args or {}).get(MARK)
    # A client may send the key, but no such object.
    return mark if isinstance(mark, Origin) else _current.get()
