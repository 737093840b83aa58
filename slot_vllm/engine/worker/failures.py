"""What fails in SLOT's own part of a step costs deltas, never a request and never the engine."""

import logging
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from slot_vllm.engine.worker.ranks import ALONE, Ranks
from slot_vllm.optim.shard import OtherRankFailed

logger = logging.getLogger("vllm.slot_vllm")

# docs/settings.md says what each one is.
Reason = Literal[
    "arrival",
    "departure",
    "batch",
    "hidden_cache",
    "vocabulary",
    "out_of_memory",
    "optimizer",
    "non_finite",
    "table",
    "logits",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Failure:
    """reason: a metric's label. trace: the traceback as text; the exception itself would keep its
    frames' tensors alive."""

    reason: Reason
    message: str
    trace: str

    @classmethod
    def of(cls, error: Exception, place: Reason) -> "Failure":
        """``place``: where it was raised. Memory that ran out is a reason of its own anywhere."""
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        return cls(
            "out_of_memory" if memory else place,
            f"{type(error).__name__}: {error}",
            "".join(traceback.format_exception(error)),
        )


_ELSEWHERE = Failure.of(OtherRankFailed(), "batch")


class Failures:
    """Counts them in ``counters``, keeps the most recent tracebacks, and logs the first failure of
    each reason."""

    def __init__(self, counters: Counter[str], ranks: Ranks = ALONE) -> None:
        self._counters = counters
        self._ranks = ranks
        self._logged: set[Reason] = set()
        self.errors: deque[str] = deque(maxlen=16)

    def agreed(self, here: Sequence[Failure | None]) -> Sequence[Failure | None]:
        """What failed on any rank, given what failed on this one, thing by thing, with the same
        reason on all. What may fail on one rank alone passes here before anything that the ranks
        do together depends on it, in an order that the scheduler's output alone determines. With
        one rank, what failed here."""
        codes = [0 if failure is None else 1 + REASONS.index(failure.reason) for failure in here]
        return [
            None if code == 0 else replace(failure or _ELSEWHERE, reason=REASONS[code - 1])
            for failure, code in zip(here, self._ranks.largest(codes), strict=True)
        ]

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
