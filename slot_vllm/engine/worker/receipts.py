"""What SLOT did to a request, for those who want to know (``receipts``).

Nothing waits for the device until a receipt is read: what was learned is where it is.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, MutableMapping
from dataclasses import replace
from math import isfinite

from cachetools import TTLCache

from slot_vllm.engine.wire.receipt_dict import MOST_SECONDS, Outcome, ReceiptDict
from slot_vllm.engine.wire.response_ids import place, response_ids
from slot_vllm.engine.worker.request import TrackedRequest

# Without a receipt: those whose prompt is not complete, and a search has one for all its steps.
_UNTOLD = ("prefilling", "search_step")


class Receipts:
    """Of the requests that run and, ``limit`` of them and none for longer than ``MOST_SECONDS``,
    of those that finished. With a limit of 0 there are none at all."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._finished: MutableMapping[str, TrackedRequest] = TTLCache(limit, MOST_SECONDS, clock)

    def finish(self, req_id: str, request: TrackedRequest) -> None:
        if not self._limit or request.status in _UNTOLD:
            return
        learned = request.learned
        if learned is not None:
            # A copy of nothing: a part of delta would keep all of it.
            learned = replace(learned, delta=learned.delta[:0].clone())
        # An id that is used again is another request's, the newest.
        self._finished.pop(req_id, None)
        self._finished[req_id] = TrackedRequest(
            request.external_id,
            request.status,
            request.reason,
            request.params,
            learned,
            request.learning,
        )

    def of_responses(
        self, names: Collection[str], running: Iterable[TrackedRequest]
    ) -> dict[str, list[TrackedRequest]]:
        """By ``names``, the ids of a server's responses: their prompts, in order. running: the
        newest last."""
        found: dict[str, dict[str, list[TrackedRequest]]] = {n: defaultdict(list) for n in names}
        requests = [*self._finished.values(), *(q for q in running if q.status not in _UNTOLD)]
        for request in reversed(requests if self._limit else []):
            for name in response_ids(request.external_id):
                if name in found:
                    found[name][request.external_id].append(request)
        return {
            name: [_telling(own[request_id]) for request_id in sorted(own, key=place)]
            for name, own in found.items()
        }


def read(request: TrackedRequest) -> ReceiptDict:
    """Its receipt. Waits for the device."""
    assert request.status != "prefilling" and request.status != "search_step"
    outcome: Outcome = request.status
    reason, params, learned, learning = request.reason, request.params, request.learned, None
    if learned is not None and not learned.finite:
        outcome, reason, learned = "failed", "non_finite", None
    if learned is not None and not learned.losses.numel():
        outcome, learned = "one_token", None
    losses, last_kl = [None], None
    if learned is not None:
        losses, learning = learned.losses.tolist(), request.learning
        last_kl = None if learned.last_kl is None else float(learned.last_kl)
    return {
        "request_id": request.external_id,
        "outcome": outcome,
        "reason": reason,
        "steps": params.steps if params else None,
        "lr": params.lr if params else None,
        "tokens": learned.rows if learned else None,
        "loss_before": losses[0],
        "loss_after": losses[-1],
        "last_kl": last_kl if last_kl is not None and isfinite(last_kl) else None,
        "seconds": learning.seconds if learning else None,
        "prompts": learning.prompts if learning else None,
    }


def _telling(found: list[TrackedRequest]) -> TrackedRequest:
    """The newest of those with one id, which is that of several requests with ``n`` above 1, or
    where a client used it twice. If it has another one's delta, that one."""
    newest = found[0]
    for other in found if newest.learned is not None else ():
        assert newest.learned is not None
        same = other.learned is not None and other.learned.losses is newest.learned.losses
        if other.status == "applied" and same:
            return other
    return newest
