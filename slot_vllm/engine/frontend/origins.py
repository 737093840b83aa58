"""Requests that vLLM submits itself, for a search or for scores: SLOT must not learn on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Origin:
    """A call of vLLM that submits requests. reason: why they have no SLOT, as the counter names it.
    prompts: how many prompts the call has; so many of its requests count. None: all count."""

    def __init__(self, reason: str, prompts: int | None = None) -> None:
        self.reason = reason
        self._left = prompts

    def counts(self) -> bool:
        """Whether the next request counts. Call it once per request."""
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0


# Of the request that is being submitted; None if a caller asked for it.
current_origin: ContextVar[Origin | None] = ContextVar("slot_vllm_origin", default=None)


@contextmanager
def submitting(origin: Origin) -> Iterator[None]:
    """Requests that are submitted within, also by tasks created within, have this origin."""
    token = current_origin.set(origin)
    try:
        yield
    finally:
        current_origin.reset(token)
