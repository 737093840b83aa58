"""The rows of several requests laid end to end, and consecutive parts of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from slot_vllm.kernels.device import to_device


class RaggedRows:
    """The rows that have a target, of B requests, R in all.

    lengths: the rows of each request, at least 1. targets: (R,) int64, vocabulary indices, on the
    device of the logits. Host and device both know where each request begins, so that neither asks
    the other in the step loop.
    """

    def __init__(self, lengths: Sequence[int], targets: Tensor) -> None:
        self.bounds = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
        if targets.shape != (self.bounds[-1],) or min(lengths, default=1) < 1:
            raise ValueError(
                f"{len(lengths)} requests of {list(lengths)} rows need {self.bounds[-1]} targets "
                f"and at least one row each; there are {tuple(targets.shape)} targets"
            )
        self.targets = targets
        self.offsets = to_device(self.bounds, torch.int32, targets.device)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        self.requests = to_device(owners, torch.int32, targets.device)
        self._parts: dict[tuple[int, int], RowPart] = {}

    def part(self, first: int, stop: int) -> "RowPart":
        """Rows ``first`` to ``stop`` of the batch; equal calls get the same object."""
        key = (first, stop)
        if key not in self._parts:
            self._parts[key] = RowPart(self, first, stop)
        return self._parts[key]


@dataclass(frozen=True)
class RowPart:
    """Rows ``first`` to ``stop`` of a batch: what one tensor of logits (r, V) holds."""

    batch: RaggedRows
    first: int
    stop: int
    _tiles: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.first

    @cached_property
    def targets(self) -> Tensor:
        """(r,) int64."""
        return self.batch.targets[self.first : self.stop]

    @cached_property
    def requests(self) -> Tensor:
        """(r,) int32, the request of each row."""
        return self.batch.requests[self.first : self.stop]

    @cached_property
    def request_range(self) -> range:
        """The requests that have a row here."""
        bounds = np.asarray(self.batch.bounds)
        begin = int(np.searchsorted(bounds, self.first, side="right")) - 1
        end = int(np.searchsorted(bounds, self.stop, side="left"))
        return range(begin, end if len(self) else begin)

    def spans(self) -> list[tuple[int, int, int]]:
        """(request, first row, last row + 1), rows counted from the start of this part."""
        bounds = self.batch.bounds
        return [
            (i, max(bounds[i], self.first) - self.first, min(bounds[i + 1], self.stop) - self.first)
            for i in self.request_range
        ]

    def tiles(self, size: int) -> tuple[Tensor, Tensor]:
        """Tiles of at most ``size`` rows, none of which crosses from one request into the next:
        (request, first row) of each as int32 tensors (tiles,). A tile ends where its request does.
        """
        if size not in self._tiles:
            spans = self.spans()
            starts = [np.arange(a, b, size) for _, a, b in spans]
            owners = np.repeat([i for i, _, _ in spans], [len(s) for s in starts])
            device = self.batch.targets.device
            self._tiles[size] = (
                to_device(owners, torch.int32, device),
                to_device(np.concatenate(starts), torch.int32, device),
            )
        return self._tiles[size]
