"""Which rows of Z0 = H W^T stay in the workspace, and which are computed again in every pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shared_rows import move_down, shared_rows
from slot_vllm.optim.workspace import Workspace

# Below this W is read for too few rows: two cores take 64 at half the rate of 256.
_FRESH_ROWS = 256


@dataclass(frozen=True)
class Segment:
    """Rows ``start`` and on of one request's Z0; they may be overwritten."""

    request: int
    start: int
    logits: Tensor


class Rows:
    """The leading rows of a group of prompts in a cache, the rest in tiles that follow each other
    through the same memory; both are (r, V) in the weight's dtype, before f."""

    def __init__(self, head: Head, prompts: Sequence[Prompt], workspace: Workspace) -> None:
        """Takes all that is left of the workspace, as far as there are rows for it."""
        self._head, self._prompts = head, prompts
        total = sum(p.rows for p in prompts)
        row_bytes = head.vocabulary * head.weight.dtype.itemsize
        room = workspace.free // row_bytes
        tile_rows = 0
        if room < total:
            tile_rows = max(1, min(_FRESH_ROWS, total, room // 4))
        self._tile = workspace.take((tile_rows, head.vocabulary), head.weight.dtype)
        cached = min(total, workspace.free // row_bytes)
        self._cache = workspace.take((cached, head.vocabulary), head.weight.dtype)
        self._offsets, offset = [], 0
        for prompt in prompts:
            self._offsets.append(min(offset, len(self._cache)))
            offset += prompt.rows
        self._offsets.append(min(offset, len(self._cache)))

    def cached(self, request: int) -> Tensor:
        """The rows of a request that are in the cache, its first ones."""
        return self._cache[self._offsets[request] : self._offsets[request + 1]]

    def fill(self) -> None:
        """Compute all cached rows, in few products; those that requests share once."""
        hidden = [p.hidden[: len(self.cached(i))] for i, p in enumerate(self._prompts)]
        shared = shared_rows(hidden)
        own = [rows[of.count :] for rows, of in zip(hidden, shared, strict=True)]
        first = 0
        waiting: list[Tensor] = []
        for i, rows in enumerate(own):
            waiting.append(rows)
            count = sum(len(part) for part in waiting)
            # Short prompts share a read of W.
            if count and (count >= _FRESH_ROWS or i + 1 == len(own)):
                self._head.product(_joined(waiting), out=self._cache[first : first + count])
                first, waiting = first + count, []
        # They lie end to end. Move them apart, the last ones first, and copy shared rows between.
        for i in reversed(range(len(own))):
            start = first - len(own[i])
            move_down(self._cache, start, first, self._offsets[i] + shared[i].count - start)
            first = start
        for i, of in enumerate(shared):
            self.cached(i)[: of.count] = self.cached(of.owner)[: of.count]

    def refill(self, request: int) -> None:
        """Compute the cached rows of one request anew."""
        cached = self.cached(request)
        self._head.product(self._prompts[request].hidden[: len(cached)], out=cached)

    def fresh(self, starts: Sequence[int]) -> Iterator[list[Segment]]:
        """Rows [starts[i], ...) of the first len(starts) requests, a tile at a time. Each tile is
        valid until the next one."""
        waiting: list[tuple[int, int, int]] = []
        count = 0
        for i, start in enumerate(starts):
            while start < self._prompts[i].rows:
                stop = min(self._prompts[i].rows, start + len(self._tile) - count)
                waiting.append((i, start, stop))
                count += stop - start
                start = stop
                if count == len(self._tile):
                    yield self._compute(waiting)
                    waiting, count = [], 0
        if waiting:
            yield self._compute(waiting)

    def _compute(self, wanted: list[tuple[int, int, int]]) -> list[Segment]:
        hidden = _joined([self._prompts[i].hidden[start:stop] for i, start, stop in wanted])
        tile = self._tile[: len(hidden)]
        self._head.product(hidden, out=tile)
        parts = tile.split([stop - start for _, start, stop in wanted])
        return [Segment(i, start, part) for (i, start, _), part in zip(wanted, parts, strict=True)]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
