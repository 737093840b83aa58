"""What SLOT did to a request, for those who want to know (``receipts``).

Nothing waits for the device until a receipt is read: it holds what was learned where it is.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, replace
from math import isfinite

from cachetools import TTLCache
from torch import Tensor

from slot_vllm.engine.wire.receipt_dict import MOST_SECONDS, Outcome, ReceiptDict
from slot_vllm.engine.wire.response_ids import place, response_ids
from slot_vllm.engine.worker.request import SlotRequest, TrackedRequest
from slot_vllm.engine.worker.step_timer import StepTime
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Receipt:
    """request_id: as its caller knows it. learned: without the delta, where there is one. learning:
    of the step in which the request's own delta was learned."""

    request_id: str
    outcome: Outcome
    reason: str | None = None
    params: SlotParams | None = None
    learned: Learned | None = None
    learning: StepTime | None = None

    @classmethod
    def of(cls, request: TrackedRequest) -> "Receipt | None":
        """None until its prompt is complete."""
        status = request.status
        if status == "prefilling" or status == "search_step":
            return None
        learned = learning = None
        if isinstance(request, SlotRequest) and request.learned is not None:
            # A copy of nothing: a part of delta would keep all of it.
            learned = replace(request.learned, delta=request.learned.delta[:0].clone())
            learning = request.learning if status == "applied" else None
        return cls(request.external_id, status, request.reason, request.params, learned, learning)

    def read(self) -> ReceiptDict:
        """Waits for the device."""
        outcome, reason, learned, learning = self.outcome, self.reason, self.learned, self.learning
        if learned is not None and not learned.finite:
            outcome, reason, learned, learning = "failed", "non_finite", None, None
        if learned is not None and not learned.losses.numel():
            outcome, learned, learning = "one_token", None, None
        losses = learned.losses.tolist() if learned else [None]
        return {
            "request_id": self.request_id,
            "outcome": outcome,
            "reason": reason,
            "steps": self.params.steps if self.params else None,
            "lr": self.params.lr if self.params else None,
            "tokens": learned.rows if learned else None,
            "loss_before": losses[0],
            "loss_after": losses[-1],
            "last_kl": _finite(learned.last_kl) if learned else None,
            "seconds": learning.seconds if learning else None,
            "prompts": learning.prompts if learning else None,
        }


class Receipts:
    """Those of the requests that run and, ``limit`` of them and none for longer than
    ``MOST_SECONDS``, of those that finished. With a limit of 0 there are none at all."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._finished: MutableMapping[str, Receipt] = TTLCache(limit, MOST_SECONDS, clock)

    def finish(self, req_id: str, request: TrackedRequest) -> None:
        receipt = Receipt.of(request) if self._limit else None
        if receipt is not None:
            # An id that is used again is another request's, the newest.
            self._finished.pop(req_id, None)
            self._finished[req_id] = receipt

    def find(self, request_id: str, running: Iterable[TrackedRequest]) -> Receipt | None:
        """Of the request whose output shows ``request_id``. running: the newest last."""
        found = [r for r in self._newest_first(running) if r.request_id == request_id]
        return _telling(found) if found else None

    def of_responses(
        self, names: Collection[str], running: Iterable[TrackedRequest]
    ) -> dict[str, list[Receipt]]:
        """By ``names``, the ids of a server's responses: those of their prompts, in order."""
        found: dict[str, dict[str, list[Receipt]]] = {name: defaultdict(list) for name in names}
        for receipt in self._newest_first(running):
            for name in response_ids(receipt.request_id):
                if name in found:
                    found[name][receipt.request_id].append(receipt)
        return {
            name: [_telling(own[request_id]) for request_id in sorted(own, key=place)]
            for name, own in found.items()
        }

    def _newest_first(self, running: Iterable[TrackedRequest]) -> Iterator[Receipt]:
        if not self._limit:
            return
        for request in reversed(list(running)):
            receipt = Receipt.of(request)
            if receipt is not None:
                yield receipt
        yield from reversed(list(self._finished.values()))


def _telling(found: list[Receipt]) -> Receipt:
    """The newest of those with one id, which is that of several requests with ``n`` above 1, or
    where a client used it twice. If it has another one's delta, that one."""
    newest = found[0]
    for other in found if newest.learned is not None else ():
        assert newest.learned is not None
        same = other.learned is not None and other.learned.losses is newest.learned.losses
        if other.outcome == "applied" and same:
            return other
    return newest


def _finite(value: Tensor | None) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and isfinite(number) else None
