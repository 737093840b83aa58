"""Beam search submits prompt + generated tokens as new prompts, on which SLOT must not learn."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.resolved import BEAM_SEARCH


def install() -> None:
    """Mark the requests of both beam searches, the offline one and the server's. Idempotent."""
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    @wrap(BeamSearchOfflineMixin, "beam_search")
    def offline_beam_search(
        original: Any, self: Any, prompts: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # vLLM takes a single prompt, too.
        several = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        with submitting(Origin(BEAM_SEARCH, len(prompts) if several else 1)):
            return original(self, prompts, *args, **kwargs)

    @wrap(BeamSearchOnlineMixin, "beam_search")
    async def online_beam_search(
        original: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        outputs, origin = original(*args, **kwargs), Origin(BEAM_SEARCH, 1)
        while True:
            # Only while the search runs, not while its consumer does.
            with submitting(origin):
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            yield output
