"""Requests that vLLM submits itself, for a search or for scores: SLOT must not learn on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Origin:
    """What submits requests. reason: why they have no SLOT, also the counter's name. prompts: how
    many of them count, of which each prompt has at least one; None: all."""

    def __init__(self, reason: str, prompts: int | None = None) -> None:
        self.reason = reason
        self._left = prompts

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


def current_origin() -> Origin | None:
    """Of the request that is being submitted; None for one that a caller asked for."""
    return _current.get()
