"""What failed in SLOT's own part of a step, and where."""

import traceback
from dataclasses import dataclass
from typing import Literal, get_args

import torch

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
