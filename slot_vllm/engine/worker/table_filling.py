"""Giving the requests of a step their rows in the table, on all ranks or on none."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.engine.worker.registry import Registry
from slot_vllm.engine.worker.request import SlotRequest


@dataclass(eq=False)
class TableFilling:
    table: DeltaTable
    linear_head: LinearHead
    registry: Registry
    failures: Failures

    def fill(self, adapted: Sequence[SlotRequest]) -> None:
        """Give the step's requests with a delta their rows; those that cannot have one fail."""
        here = {request.table_key: request for request in adapted}
        self._fill([q for key, q in here.items() if self.table.row(key) is None], here)

    def _fill(self, requests: Sequence[SlotRequest], here: Collection[str]) -> None:
        """requests: each with another row. here: the keys of the step's rows."""
        deltas = [(q, q.learned) for q in requests if q.learned]
        if not deltas:
            return
        finite = self.failures.attempt(
            "table",
            lambda: self.table.fill(
                [self.table.assign(q.table_key, here) for q, _ in deltas],
                torch.stack([learned.delta for _, learned in deltas]),
                [q.rounds for q, _ in deltas],
                self.linear_head.head(),
            ),
        )
        if not isinstance(finite, Failure):
            if self.linear_head.ranks.size > 1:
                finite = self._finite_everywhere([q.table_key for q, _ in deltas], finite)
            for (_, learned), ok in zip(deltas, finite, strict=True):
                learned.finite.logical_and_(ok)
            return
        for q, _ in deltas:
            # Else an equal prompt would take what the row held before for its own.
            self.table.remove(q.table_key)
        if len(deltas) > 1:
            for q, _ in deltas:
                self._fill([q], here)
            return
        key = deltas[0][0].table_key
        for q in self.registry.with_slot:
            if q.table_key == key and q.learned is not None:
                self.failures.fail(q, finite)

    def _finite_everywhere(self, keys: Sequence[str], finite: Sequence[Tensor]) -> list[Tensor]:
        """A row is zero on all ranks if its part of W delta is not finite on one."""
        together = (self.linear_head.ranks.gather(torch.stack(list(finite)).float()) > 0).all(dim=0)
        places = [row for row in map(self.table.row, keys) if row is not None]
        for row, ok in zip(places, together, strict=True):
            self.table.biases[row].mul_(ok)
            self.table.rounded[row].mul_(ok)
            self.table.effective[row].mul_(ok)
        return list(together)
