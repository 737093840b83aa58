"""Column sums by a softmax of f(Z0 + W delta) in every pass: the form that serves every head."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.kernels.shift import shift
from slot_vllm.kernels.softmax_sums import add_softmax_sums
from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.rows import Rows
from slot_vllm.optim.workspace import Workspace, aligned

# Tiles that stay in a CPU's cache, and tiles that keep a GPU busy.
_CPU_ROWS, _GPU_ROWS = 8, 64


class PlainForm:
    """T passes over Z0, T exponentials of each element, and tangents where there is a soft cap."""

    def __init__(self, head: Head, prompts: Sequence[Prompt], workspace: Workspace) -> None:
        """For one group of prompts, each with a row to learn from, from the emptied workspace."""
        self._head, self._prompts = head, prompts
        shape = (len(prompts), head.vocabulary)
        self._sums = workspace.take(shape, torch.float32)
        self._shifts = workspace.take(shape, torch.float32)
        rows = _CPU_ROWS if head.weight.device.type == "cpu" else _GPU_ROWS
        planes = 1 if head.soft_cap is None else 2
        rows = max(1, min(rows, workspace.free // 4 // (planes * head.vocabulary * 4)))
        self._scratch = workspace.take((planes, rows, head.vocabulary), torch.float32)
        self._rows = Rows(head, prompts, workspace)
        self._rows.fill()

    @staticmethod
    def vector_bytes(head: Head) -> int:
        """What one request needs besides its rows."""
        return 2 * aligned(head.vocabulary * 4)

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        """What a group needs besides ``vector_bytes``, with tiles of one row."""
        planes = 1 if head.soft_cap is None else 2
        row = aligned(head.vocabulary * head.weight.dtype.itemsize)
        return aligned(planes * head.vocabulary * 4) + row

    def sums(self, active: int, deltas: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the first ``active`` prompts at ``deltas`` (active, d) float32: column sums less those
        of the targets (active, V) float32, so that W^T sums is the gradient of the summed losses;
        and those losses (active,) float64. The first call is of all prompts at None, zero."""
        sums = self._sums[:active].zero_()
        losses = torch.zeros(active, dtype=torch.float64, device=sums.device)
        shifted = deltas is not None
        if deltas is not None:
            shift(self._head.weight, deltas, self._shifts[:active])
        for i in range(active):
            self._add(i, 0, self._rows.cached(i), shifted, losses)
        for tile in self._rows.fresh([len(self._rows.cached(i)) for i in range(active)]):
            for part in tile:
                self._add(part.request, part.start, part.logits, shifted, losses)
        return sums, losses

    def _add(self, i: int, start: int, logits: Tensor, shifted: bool, losses: Tensor) -> None:
        step = self._scratch.shape[1]
        for part in logits.split(step) if len(logits) else ():
            stop = start + len(part)
            row_losses = torch.empty(len(part), dtype=torch.float32, device=losses.device)
            add_softmax_sums(
                part,
                self._shifts[i] if shifted else None,
                self._prompts[i].tokens[start + 1 : stop + 1],
                self._head.soft_cap,
                self._head.scale,
                self._scratch[:, : len(part)],
                self._sums[i],
                row_losses,
            )
            losses[i] += row_losses.sum(dtype=torch.float64)
            start = stop
