"""Beam search submits prompt + generated tokens as new prompts, on which SLOT must not learn."""

import functools
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from typing import Any

from slot_vllm.engine.startup import is_wrapped, mark

_searching: ContextVar[bool] = ContextVar("slot_vllm_beam_search", default=False)


# In the extra_args of a patched vLLM's beam searches, which do not need wrapping.
_MARK = "slot.beam_search"


def marked(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether a patched vLLM says that a beam search submitted the request."""
    return bool(extra_args) and _MARK in (extra_args or {})


def searching() -> bool:
    """Whether the current request was submitted by a beam search."""
    return _searching.get()


def install() -> None:
    """Mark the requests of both beam searches, the offline one and the server's. Idempotent."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    if is_wrapped(BeamSearchOfflineMixin.beam_search):
        return
    offline, online = BeamSearchOfflineMixin.beam_search, BeamSearchOnlineMixin.beam_search

    @functools.wraps(offline)
    def offline_beam_search(*args: Any, **kwargs: Any) -> Any:
        token = _searching.set(True)
        try:
            return offline(*args, **kwargs)
        finally:
            _searching.reset(token)

    @functools.wraps(online)
    async def online_beam_search(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        outputs = online(*args, **kwargs)
        while True:
            # Set only while the search runs, not while its consumer does.
            token = _searching.set(True)
            try:
                output = await anext(outputs)
            except StopAsyncIteration:
                return
            finally:
                _searching.reset(token)
            yield output

    BeamSearchOfflineMixin.beam_search = mark(offline_beam_search)
    BeamSearchOnlineMixin.beam_search = online_beam_search
