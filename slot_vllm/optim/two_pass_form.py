"""Z0 of a group of prompts where one row of it does not stay on chip: softmax in two passes.

The log-sum-exp of every row first, then the column sums. All requests' rows are one ragged batch:
the passes are a few kernels, however many prompts there are; only the rows of short prompts are
gathered one by one.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.column_sums import add_column_sums
from slot_vllm.kernels.head_product import head_product
from slot_vllm.kernels.ragged import RaggedRows, RowPart
from slot_vllm.kernels.request_losses import add_request_losses
from slot_vllm.kernels.row_statistics import finish_rows, row_partials
from slot_vllm.kernels.shift import shift
from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.workspace import Workspace, aligned

# So many rows make the product bound by its operations; more at once gain nothing.
_MAX_CHUNK_ROWS = 1024
# Whole tiles of the product.
_TILE_ROWS = 128
# Rows of Z0 begin at multiples of 128 bytes in any 16-bit dtype.
_ROW_ALIGNMENT = 64


class TwoPassForm:
    """Z0 = H W^T + bias of B prompts, what fits of it kept in ``workspace`` in the model's dtype.

    prompts: each with at least one row that has a target. shard: set if ``head`` is one rank's part
    of the vocabulary; the sums are then this part's, and the gradient is the sum over the ranks.
    All of size V or n x V is in the workspace; outside of it are some 100 bytes per row, at most.
    """

    def __init__(
        self,
        head: Head,
        prompts: Sequence[Prompt],
        workspace: Workspace,
        shard: Shard | None = None,
    ) -> None:
        self._head, self._shard = head, shard
        self._f = Activation(head.soft_cap, head.scale)
        self._hidden = [p.hidden[: p.rows] for p in prompts]
        targets = torch.cat([p.tokens[1:] for p in prompts])
        self._rows = RaggedRows([p.rows for p in prompts], targets)

        shape, dtype = (len(prompts), head.vocabulary), head.weight.dtype
        columns = head.vocabulary if shard is None else shard.widest
        room = workspace.free - _vectors_bytes(len(prompts), columns, dtype)
        self._sums = workspace.take(shape, torch.float32)
        self._shifts = workspace.take(shape, torch.float32)
        self._rounded = None if dtype == torch.float32 else workspace.take(shape, dtype)
        total = self._rows.bounds[-1]
        gathers = len(prompts) > 1 or not self._is_ready(self._hidden[0])
        cached, chunk = _layout(head, columns, total, gathers, room)
        self._gathered = None
        if gathers:
            self._gathered = workspace.take((chunk, head.hidden_size), dtype)
        self._cache = self._take_logits(workspace, cached)
        self._fresh = None
        if cached < total:
            self._fresh = self._take_logits(workspace, chunk)
        self._filling_rows = chunk if gathers else total
        self._fresh_rows = chunk
        self._filled = False

    @staticmethod
    def vector_bytes(head: Head) -> int:
        return _vectors_bytes(1, head.vocabulary, head.weight.dtype)

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        itemsize = head.weight.dtype.itemsize
        row = _padded(head.vocabulary) * itemsize
        return aligned(row) + aligned(head.hidden_size * itemsize)

    def sums(self, active: int, deltas: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first call fills the cache. Nothing waits for the device."""
        sums = self._sums[:active].zero_()
        losses = torch.zeros(active, dtype=torch.float64, device=sums.device)
        shifts = None
        if deltas is not None:
            shifts = self._shifts[:active]
            rounded = None if self._rounded is None else self._rounded[:active]
            shift(self._head.weight, deltas, shifts, rounded)
        filling, self._filled = not self._filled, True
        for part in self._parts(active, filling):
            cached = part.first < len(self._cache)
            if cached:
                logits = self._cache[part.first : part.stop]
            else:
                assert self._fresh is not None
                logits = self._fresh[: len(part)]
            if cached and not filling:
                partials = row_partials(logits, shifts, part, self._f)
            else:
                hidden, head = self._hidden_of(part), self._head
                partials = head_product(
                    hidden, head.weight, head.bias, shifts, part, self._f, logits
                )
            self._add_part(part, shifts, logits, partials, sums, losses)
        return sums, losses

    def chunks(self, active: int, first: bool) -> list[int]:
        """The rows of each part of a pass over the first ``active`` prompts, whose log-sum-exp is
        gathered together if there are shards. first: whether it is the first pass."""
        return [len(part) for part in self._parts(active, first)]

    def _parts(self, active: int, filling: bool) -> list[RowPart]:
        """Those in the cache, at once or as they are filled; then those that are made afresh."""
        stop = self._rows.bounds[active]
        cached = min(stop, len(self._cache))
        step = self._filling_rows if filling else max(1, cached)
        bounds = [*range(0, cached, step), *range(len(self._cache), stop, self._fresh_rows), stop]
        return [self._rows.part(a, b) for a, b in pairwise(bounds)]

    def _add_part(
        self,
        part: RowPart,
        shifts: Tensor | None,
        logits: Tensor,
        partials: tuple[Tensor, Tensor],
        sums: Tensor,
        losses: Tensor,
    ) -> None:
        first_token = 0 if self._shard is None else self._shard.first_token
        lse, target_logits = finish_rows(*partials, logits, shifts, part, self._f, first_token)
        if self._shard is not None:
            lse, target_logits = self._shard.merge(lse, target_logits)
        add_column_sums(logits, shifts, lse, part, self._f, sums, first_token)
        add_request_losses(lse, target_logits, part, losses)

    def _is_ready(self, hidden: Tensor) -> bool:
        return hidden.dtype == self._head.weight.dtype and hidden.stride(1) == 1

    def _hidden_of(self, part: RowPart) -> Tensor:
        """(r, d): a view where the rows are one prompt's, else gathered."""
        spans = []
        for request, start, stop in part.spans():
            shift = part.first - self._rows.bounds[request]
            spans.append(self._hidden[request][start + shift : stop + shift])
        if len(spans) == 1 and self._is_ready(spans[0]):
            return spans[0]
        assert self._gathered is not None
        out = self._gathered[: len(part)]
        for (_, start, stop), rows in zip(part.spans(), spans, strict=True):
            out[start:stop].copy_(rows)
        return out

    def _take_logits(self, workspace: Workspace, rows: int) -> Tensor:
        padded = workspace.take((rows, _padded(self._head.vocabulary)), self._head.weight.dtype)
        return padded[:, : self._head.vocabulary]


def _vectors_bytes(requests: int, columns: int, dtype: torch.dtype) -> int:
    """Sums, shifts, and these once more in the model's dtype on their way."""
    rounded = 0 if dtype == torch.float32 else aligned(requests * columns * dtype.itemsize)
    return 2 * aligned(requests * columns * 4) + rounded


def _padded(columns: int) -> int:
    return -(-columns // _ROW_ALIGNMENT) * _ROW_ALIGNMENT


def _layout(head: Head, columns: int, rows: int, gathers: bool, free: int) -> tuple[int, int]:
    """How many rows of Z0 are kept, and how many are gathered, or made again, at a time."""
    itemsize = head.weight.dtype.itemsize
    row = _padded(columns) * itemsize
    gathered = head.hidden_size * itemsize if gathers else 0
    chunk = min(rows, _MAX_CHUNK_ROWS)
    if aligned(chunk * gathered) + rows * row <= free:
        return rows, chunk
    # Every row that is not cached costs a product in each step: the chunk gets the smaller part.
    chunk = min(chunk, max(1, (free // 4) // (row + gathered)))
    chunk -= chunk % _TILE_ROWS if chunk > _TILE_ROWS else 0
    left = free - aligned(chunk * row) - aligned(chunk * gathered)
    return min(rows - 1, max(0, left // row)), chunk
