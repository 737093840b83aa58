"""What is added to the logits of each running request, one row per delta."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from slot_vllm.optim.head import Head

_SHARING = 8


class DeltaTable:
    """Row 0 is zero and belongs to requests without a delta.

    biases: (1 + capacity, V) float32, W delta of requests that add it to their logits.
    rounded: (1 + capacity, d) in the model's dtype, delta of requests that add it to their hidden
        states (``slot_rounding: model``).
    effective: (1 + capacity,) int64, each row's number, or 0 where it holds nothing but zeros: such
        a request's logits keep every bit.
    """

    def __init__(self, capacity: int, head: Head) -> None:
        device = head.weight.device
        rows = 1 + capacity
        self.biases = torch.zeros(rows, head.vocabulary, dtype=torch.float32, device=device)
        self.rounded = torch.zeros(rows, head.hidden_size, dtype=head.weight.dtype, device=device)
        self.effective = torch.zeros(rows, dtype=torch.int64, device=device)
        self._free = list(range(capacity, 0, -1))
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, key: str) -> int | None:
        return self._rows.get(key)

    def assign(self, key: str, keep: Collection[str]) -> int:
        """Give the key a row, to be filled. ``keep``: the keys of this step, whose rows must stay;
        a preempted request loses its row when no other is left, and gets one when it resumes."""
        if not self._free:
            self.remove(next(k for k in self._rows if k not in keep))
        row = self._free.pop()
        self._rows[key] = row
        return row

    def fill(
        self, rows: Sequence[int], deltas: Tensor, rounds: Sequence[bool], head: Head
    ) -> list[Tensor]:
        """Write the rows of ``deltas`` (k, d) float32; a few at a time share a pass over W. Returns
        for each, () bool, whether delta and W delta are finite, in the model's dtype if they are
        rounded; where they are not the row is zero."""
        finite: list[Tensor] = []
        for start in range(0, len(rows), _SHARING):
            part = slice(start, start + _SHARING)
            shifts = head.exact_shift(deltas[part])
            anything = deltas[part].any(dim=1)
            largest = deltas[part].abs().amax(dim=1)
            if head.vocabulary:  # a rank may have no columns
                low, high = torch.aminmax(shifts, dim=1)
                largest = torch.maximum(-low, high).maximum(largest)
            for i, (row, delta, shift, rounded) in enumerate(
                zip(rows[part], deltas[part], shifts, rounds[part], strict=True)
            ):
                limit = torch.finfo(head.weight.dtype if rounded else torch.float32).max
                # False for what is not a number.
                finite.append(largest[i] <= limit)
                self.biases[row].zero_()
                self.rounded[row].zero_()
                if rounded:
                    self.rounded[row].copy_(torch.where(finite[-1], delta, 0.0))
                else:
                    self.biases[row].copy_(torch.where(finite[-1], shift, 0.0))
                self.effective[row].copy_((anything[i] & finite[-1]) * row)
        return finite

    def remove(self, key: str) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._free.append(row)
