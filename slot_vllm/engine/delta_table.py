"""What is added to the logits of each running request, one row per request."""

from collections.abc import Collection

import torch
from torch import Tensor

from slot_vllm.optim.head import Head


class DeltaTable:
    """Row 0 is zero and belongs to requests without a delta.

    biases: (1 + capacity, V) float32, W delta of requests that add it to their logits.
    rounded: (1 + capacity, d) in the model's dtype, delta of requests that add it to their hidden
        states (``slot_rounding: model``).
    """

    def __init__(self, capacity: int, head: Head) -> None:
        device = head.weight.device
        rows = 1 + capacity
        self.biases = torch.zeros(rows, head.vocabulary, dtype=torch.float32, device=device)
        self.rounded = torch.zeros(rows, head.hidden_size, dtype=head.weight.dtype, device=device)
        self._free = list(range(capacity, 0, -1))
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, request_id: str) -> int | None:
        return self._rows.get(request_id)

    def add(
        self, request_id: str, delta: Tensor, rounds: bool, head: Head, keep: Collection[str]
    ) -> int:
        """Give the request a row. ``keep``: the requests of this step, whose rows must stay; a
        preempted request loses its row when no other is left, and gets one when it resumes."""
        if not self._free:
            self.remove(next(r for r in self._rows if r not in keep))
        row = self._free.pop()
        self._rows[request_id] = row
        if rounds:
            self.rounded[row].copy_(delta)
            self.biases[row].zero_()
        else:
            self.rounded[row].zero_()
            head.exact_shift(delta.unsqueeze(0), out=self.biases[row : row + 1])
        return row

    def remove(self, request_id: str) -> None:
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._free.append(row)
