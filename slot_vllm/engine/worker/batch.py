"""What a step brings, the same for both model runners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class BatchView:
    """One step's batch; b requests, r rows of logits.

    starts: (b,) the position of each request's first row. query_start: (b + 1,) where its hidden
    states begin. slots: (b,) each request's index in ``row_slots``, which is (r,) int64 on the
    device and says whose row of logits each one is; slots are below ``num_slots``. positions: gives
    (r,) int64 on the device, at which token of its request each row of logits stands. read: where
    hidden states are in the KV cache, (i, start, stop) gives the i-th request's of these positions,
    (stop - start, d); this step's are among them.
    """

    req_ids: Sequence[str]
    starts: np.ndarray
    query_start: np.ndarray
    slots: np.ndarray
    row_slots: Tensor
    num_slots: int
    positions: Callable[[], Tensor]
    read: Callable[[int, int, int], Tensor] | None = None
