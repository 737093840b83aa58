"""What fails in SLOT's own part of a step costs deltas, never a request and never the engine.

What may fail on one rank alone is agreed upon here before anything that the ranks do together
depends on it, in an order that the scheduler's output alone determines.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TypeVar

from slot_vllm.engine.worker.failure import REASONS, Failure, Reason
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.ranks import ALONE, Ranks
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.optim.shard import CollectiveFailed, OtherRankFailed

logger = logging.getLogger("vllm.slot_vllm")

T = TypeVar("T")

_ELSEWHERE = Failure.of(OtherRankFailed(), "batch")


class Failures:
    """Counts them in ``counters``, keeps the most recent tracebacks, and logs the first failure of
    each reason. rows: gives up those of a request that fails."""

    def __init__(self, counters: Counter[str], rows: PromptRows, ranks: Ranks = ALONE) -> None:
        self._counters = counters
        self._rows = rows
        self._ranks = ranks
        self._logged: set[Reason] = set()
        self.errors: deque[str] = deque(maxlen=16)

    @contextmanager
    def noted(self, request: SlotRequest, place: Reason) -> Iterator[None]:
        """Note what is raised within on the request, for ``settle``, and raise it no further."""
        try:
            yield
        except Exception as error:
            request.failure = Failure.of(error, place)

    def settle(self, requests: Sequence[SlotRequest]) -> None:
        """Those of ``requests`` with a noted failure on any rank fail on all."""
        failures = self.agreed([request.failure for request in requests])
        for request, failure in zip(requests, failures, strict=True):
            if failure is not None:
                self.fail(request, failure)

    def attempt(self, place: Reason, work: Callable[[], T]) -> T | Failure:
        """The result of ``work``, or on all ranks a failure if it raises on any."""
        result: list[T] = []
        failure = None
        try:
            result.append(work())
        except CollectiveFailed:
            raise
        except OtherRankFailed:
            # That rank reports it.
            pass
        except Exception as error:
            failure = Failure.of(error, place)
        (failure,) = self.agreed([failure])
        return failure or result[0]

    def attempt_together(self, place: Reason, work: Callable[[], T]) -> T | Failure:
        """As ``attempt``, of ``work`` in which the ranks do things together. With several it
        raises: the others may be anywhere in it, and an engine that ends is better than one that
        waits for ever."""
        return work() if self._ranks.size > 1 else self.attempt(place, work)

    def agreed(self, here: Sequence[Failure | None]) -> Sequence[Failure | None]:
        """What failed on any rank, given what failed on this one, thing by thing, with the same
        reason on all. With one rank, what failed here."""
        codes = [0 if failure is None else 1 + REASONS.index(failure.reason) for failure in here]
        return [
            None if code == 0 else replace(failure or _ELSEWHERE, reason=REASONS[code - 1])
            for failure, code in zip(here, self._ranks.largest(codes), strict=True)
        ]

    def fail(self, request: SlotRequest, failure: Failure) -> None:
        """The request continues without a delta."""
        self.count(failure, request.external_id)
        request.failure = failure
        self._rows.finish(request, "failed", reason=failure.reason)

    def fail_all(self, requests: Iterable[SlotRequest], failure: Failure) -> None:
        for request in requests:
            if request.status != "failed":
                self.fail(request, failure)

    @contextmanager
    def contained(self, place: Reason, consequence: str) -> Iterator[None]:
        """Report what is raised within, and what comes of it, and raise it no further."""
        try:
            yield
        except Exception as error:
            self.report(Failure.of(error, place), consequence)

    def updating(self) -> AbstractContextManager[None]:
        """For logs and metrics, which never raise."""
        return self.contained("batch", "a log or a metric lacks something")

    def count(self, failure: Failure, name: str) -> None:
        """``name``: of the request."""
        self._counters["failed"] += 1
        self._counters[f"failed.{failure.reason}"] += 1
        self.report(failure, f"request {name!r} goes on without a delta")

    def report(self, failure: Failure, consequence: str) -> None:
        self.errors.append(failure.trace)
        self.log(failure.reason, f"{failure.message}; {consequence}; slot_errors has the traceback")

    def log(self, reason: Reason, message: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            logger.error("SLOT failed (%s; said once): %s", reason, message)
