"""What one step adds to its logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.kernels.device import to_device
from slot_vllm.optim.fading import WHOLE, factors, limits


@dataclass(frozen=True)
class Additions:
    """Per row of logits.

    look_up: gives each row's row in the tables, (r,) int64. biases, rounded: see DeltaTable; None
    where no request of the step uses it. fade: gives ``factors``; None where all of them are 1.
    """

    look_up: Callable[[], Tensor]
    biases: Tensor | None
    rounded: Tensor | None
    fade: Callable[[], Tensor] | None = None

    @cached_property
    def factors(self) -> Tensor | None:
        """(r,) float32, what each row's row of the tables is multiplied by."""
        return None if self.fade is None else self.fade()

    @cached_property
    def rows(self) -> Tensor:
        """(r,) int64, each row's row in the tables; 0 where nothing is left of it."""
        rows = self.look_up()
        return rows if self.factors is None else torch.where(self.factors > 0, rows, 0)

    def of(self, table: Tensor) -> Tensor:
        """(r, m), what each row gets of ``table`` (1 + capacity, m), in its dtype."""
        if self.factors is None:
            return table[self.rows]
        return (table[self.rows].float() * self.factors.unsqueeze(1)).to(table.dtype)


def additions_for(
    adapted: Sequence[tuple[int, SlotRequest]], table: DeltaTable, batch: BatchView
) -> Additions:
    """adapted: the requests with a delta, which is in the table, and their slots."""
    device = table.effective.device
    lookup = [0] * batch.num_slots
    for slot, request in adapted:
        lookup[slot] = table.row(request.table_key) or 0

    def look_up() -> Tensor:
        rows = to_device(lookup, torch.int64, device)[batch.row_slots]
        return table.effective[rows]

    rounds = {request.rounds for _, request in adapted}
    return Additions(
        look_up,
        table.biases if False in rounds else None,
        table.rounded if True in rounds else None,
        _fading(adapted, batch, device),
    )


def _fading(
    adapted: Sequence[tuple[int, SlotRequest]], batch: BatchView, device: torch.device
) -> Callable[[], Tensor] | None:
    """Gives ``Additions.factors``; None where every request gets all of W delta. By positions on
    the device: with asynchronous scheduling and drafts the host does not know yet how many tokens a
    request has."""
    if all(limits(request.params) == WHOLE for _, request in adapted):
        return None

    def look_up() -> Tensor:
        own = [(0.0, *WHOLE)] * batch.num_slots
        for slot, request in adapted:
            own[slot] = (float(len(request.tokens)), *limits(request.params))
        slots = to_device(own, torch.float64, device)[batch.row_slots]
        lengths, windows, half_lives = slots.unbind(1)
        # The row of the prompt's last token chooses the first one, t = 0.
        return factors(batch.positions() + 1 - lengths, windows, half_lives)

    return look_up
