"""Rows that prompts have in common, such as a system prompt's: their product is made once.

They are the same where the hidden states are, bit for bit: as those of a prefix that was read from
the prefix cache are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """The first ``count`` rows of a prompt are those of prompt ``owner``."""

    owner: int = 0
    count: int = 0


def shared_rows(hidden: Sequence[Tensor]) -> list[Shared]:
    """For each prompt's hidden states (n, d), the earlier prompt with which it shares most rows. On
    a CPU only: the host would have to wait for a GPU."""
    found = []
    for i, rows in enumerate(hidden):
        own = Shared()
        for owner in range(i if rows.device.type == "cpu" else 0):
            count = _same_rows(hidden[owner], rows)
            own = max(own, Shared(owner, count), key=lambda shared: shared.count)
        found.append(own)
    return found


def _same_rows(first: Tensor, second: Tensor) -> int:
    """How many of their first rows are the same."""
    length = min(len(first), len(second))
    same = (first[:length] == second[:length]).all(dim=1)
    return length if same.all() else int(same.int().argmin())


def move_down(cache: Tensor, start: int, stop: int, gap: int) -> None:
    """Move rows [start, stop) down by ``gap`` rows; source and target may overlap."""
    while gap and start < stop:
        count = min(gap, stop - start)
        cache[stop + gap - count : stop + gap] = cache[stop - count : stop]
        stop -= count
