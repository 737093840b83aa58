"""Column sums from cached exponentials: on a CPU, for heads without a soft cap.

With E = e^(Z0 - max) made once, a step is two matrix-vector products with E and takes no
exponential of size n x V (``kernels/exponentials.py``). E serves deltas near the one it was made
at, at first zero; far from it (a range of W delta above ``RANGE``) it is made anew, by one more
product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.kernels.exponentials import (
    RANGE,
    Product,
    add_exponential_sums,
    stored,
    to_exponentials,
)
from slot_vllm.kernels.shift import shift
from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.rows import Rows
from slot_vllm.optim.workspace import Workspace, aligned

# Of a tile, measured to be the fastest in torch by far.
_SCRATCH_ROWS = 4


class CachedForm:
    """One pass of exponentials; T - 1 steps that read E once from memory."""

    def __init__(self, head: Head, prompts: Sequence[Prompt], workspace: Workspace) -> None:
        self._head, self._prompts = head, prompts
        device, shape = head.weight.device, (len(prompts), head.vocabulary)
        self._sums = workspace.take(shape, torch.float32)
        self._shifts = workspace.take(shape, torch.float32)
        self._factors = workspace.take((head.vocabulary,), torch.float32)
        rows = 1
        if workspace.free >= 4 * _SCRATCH_ROWS * head.vocabulary * 4:
            rows = _SCRATCH_ROWS
        self._scratch = workspace.take((rows, head.vocabulary), torch.float32)
        self._rows = Rows(head, prompts, workspace)
        self._rows.fill()
        # Where E was made. A request with rows outside the cache gives E up instead of moving it.
        self._origins = torch.zeros(len(prompts), head.hidden_size, device=device)
        self._moved = [False] * len(prompts)
        self._margins = [
            torch.empty(len(self._rows.cached(i)), device=device) for i in range(len(prompts))
        ]
        self._given_up = [False] * len(prompts)

    @staticmethod
    def vector_bytes(head: Head) -> int:
        return 2 * aligned(head.vocabulary * 4)

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        row = aligned(head.vocabulary * head.weight.dtype.itemsize)
        vectors = 2 * aligned(head.vocabulary * 4)
        return vectors + row

    def sums(self, active: int, deltas: Tensor | None) -> tuple[Tensor, Tensor]:
        sums = self._sums[:active].zero_()
        losses = torch.zeros(active, dtype=torch.float64)
        moves = [deltas is None] * active
        if deltas is not None:
            shifts = self._shifts[:active]
            shift(self._head.weight, deltas - self._origins[:active], shifts)
            moves = self._move(shifts, deltas)
        for i in range(active):
            if len(self._cached(i)):
                self._add_cached(i, moves[i], deltas is not None, losses)
        for tile in self._rows.fresh([len(self._cached(i)) for i in range(active)]):
            for part in tile:
                self._make(part.request, part.start, part.logits, deltas is not None, losses)
        return sums, losses

    def _cached(self, i: int) -> Tensor:
        return self._rows.cached(i)[: 0 if self._given_up[i] else None]

    def _move(self, shifts: Tensor, deltas: Tensor) -> list[bool]:
        """Which requests' E must be made at their delta. Their shifts then are W delta itself."""
        low, high = torch.aminmax(shifts, dim=1)
        # One that is not finite is far, too.
        far = ~((high - low) * abs(self._head.scale) <= RANGE)
        moves: list[bool] = far.tolist()
        for i, move in enumerate(moves):
            if not move or not len(self._cached(i)):
                continue
            if len(self._cached(i)) < self._prompts[i].rows:
                self._given_up[i] = True
                continue
            if self._moved[i]:
                shift(self._head.weight, deltas[i : i + 1], shifts[i : i + 1])
            self._origins[i], self._moved[i] = deltas[i], True
            self._rows.refill(i)
        return moves

    def _add_cached(self, i: int, made: bool, shifted: bool, losses: Tensor) -> None:
        if made:
            self._make(i, 0, self._cached(i), shifted, losses, self._margins[i])
            return
        cached = self._cached(i)
        row_losses = torch.empty(len(cached))
        add_exponential_sums(
            stored(cached),
            self._shifts[i],
            self._prompts[i].tokens[1 : len(cached) + 1],
            self._head.scale,
            self._margins[i],
            self._scratch,
            self._factors,
            self._sums[i],
            row_losses,
        )
        losses[i] += row_losses.sum(dtype=torch.float64)

    def _make(
        self,
        i: int,
        start: int,
        logits: Tensor,
        shifted: bool,
        losses: Tensor,
        margins: Tensor | None = None,
    ) -> None:
        stop = start + len(logits)
        row_losses = torch.empty(len(logits))
        product = None
        if self._head.weight.dtype != torch.float32:
            hidden = self._prompts[i].hidden[start:stop].to(self._head.weight.dtype)
            product = Product(hidden, self._head.weight, self._head.bias)
        to_exponentials(
            logits,
            self._shifts[i] if shifted else None,
            self._prompts[i].tokens[start + 1 : stop + 1],
            self._head.scale,
            self._scratch,
            self._sums[i],
            row_losses,
            torch.empty(len(logits)) if margins is None else margins,
            product,
        )
        losses[i] += row_losses.sum(dtype=torch.float64)
