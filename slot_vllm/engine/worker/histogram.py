"""A histogram of values where they are: on the device, or the host."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.engine.wire.worker_metrics import HistogramSnapshot


class Histogram:
    """Counts values by upper bounds, as Prometheus does; no step waits for it, ``snapshot`` does.
    total: whether their sum is kept."""

    def __init__(self, bounds: Sequence[float], device: torch.device, total: bool = True) -> None:
        self._bounds = torch.tensor(bounds, dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(bounds) + 1, dtype=torch.int64, device=device)
        self._total = torch.zeros((), dtype=torch.float64, device=device) if total else None

    def observe(self, values: Tensor) -> None:
        """values: (k,), of which those that are not finite are left out."""
        values, finite = values.double(), torch.isfinite(values)
        places = torch.bucketize(values, self._bounds)
        self._counts.index_add_(0, places, finite.to(torch.int64))
        if self._total is not None:
            self._total += values.where(finite, 0.0).sum()

    def snapshot(self) -> HistogramSnapshot:
        total = None if self._total is None else self._total.item()
        return {"bounds": self._bounds.tolist(), "counts": self._counts.tolist(), "total": total}
