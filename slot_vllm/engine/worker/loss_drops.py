"""How far the prompt losses fell, counted where they are: on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.engine.wire.histogram import HistogramSnapshot

# Nats per token. Below zero the loss rose.
BOUNDS = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class LossDrops:
    """A histogram of first less last loss; no step waits for it, ``snapshot`` does."""

    def __init__(self, device: torch.device) -> None:
        self._bounds = torch.tensor(BOUNDS, dtype=torch.float32, device=device)
        self._counts = torch.zeros(len(BOUNDS) + 1, dtype=torch.int64, device=device)

    def observe(self, losses: Sequence[Tensor]) -> None:
        """losses: per prompt (t,) float32, see ``Learned``. What has fewer than two, or is not
        finite, says nothing and is left out."""
        told = [own for own in losses if own.numel() > 1]
        if not told:
            return
        drops = torch.stack([own[0] for own in told]) - torch.stack([own[-1] for own in told])
        self._counts.index_add_(
            0, torch.bucketize(drops, self._bounds), torch.isfinite(drops).to(torch.int64)
        )

    def snapshot(self) -> HistogramSnapshot:
        # No sum: with values below zero it could fall, which Prometheus takes for a restart.
        return {"bounds": list(BOUNDS), "counts": self._counts.tolist(), "total": None}
