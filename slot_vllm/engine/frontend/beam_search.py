"""Beam search submits prompt + generated tokens as new prompts, on which SLOT must not learn."""

import functools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.frontend.wraps import is_wrapped, mark
from slot_vllm.engine.wire.resolved import BEAM_SEARCH


def search(prompts: int) -> Origin:
    """The origin of a search over so many prompts, each of which counts as one request."""
    return Origin(BEAM_SEARCH, prompts)


def install() -> None:
    """Mark the requests of both beam searches, the offline one and the server's. Idempotent."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    if is_wrapped(BeamSearchOfflineMixin.beam_search):
        return
    offline, online = BeamSearchOfflineMixin.beam_search, BeamSearchOnlineMixin.beam_search

    @functools.wraps(offline)
    def offline_beam_search(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        # vLLM takes a single prompt, too.
        several = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        with submitting(search(len(prompts) if several else 1)):
            return offline(self, prompts, *args, **kwargs)

    @functools.wraps(online)
    async def online_beam_search(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        outputs, origin = online(*args, **kwargs), search(1)
        while True:
            # Only while the search runs, not while its consumer does.
            with submitting(origin):
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            yield output

    BeamSearchOfflineMixin.beam_search = mark(offline_beam_search)
    BeamSearchOnlineMixin.beam_search = online_beam_search
