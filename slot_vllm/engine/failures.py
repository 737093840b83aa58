"""What fails in SLOT's own part of a step costs deltas, never a request and never the engine."""

import logging
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

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


class Failures:
    """Counts them in ``counters``, keeps the most recent tracebacks, and logs the first failure of
    each reason."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._logged: set[Reason] = set()
        self.errors: deque[str] = deque(maxlen=16)

    def agreed(self, here: Sequence[Failure | None]) -> Sequence[Failure | None]:
        """What failed on any worker, given what failed on this one, thing by thing. Everything that
        may fail in a step passes here before anything depends on it (on a departure nothing
        does), in an order that the scheduler's output alone determines. With one worker, what
        failed here."""
        return here

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
