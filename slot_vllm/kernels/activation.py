"""f, what a model does to its logits: scale * soft_cap * tanh(z / soft_cap), or scale * z."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """soft_cap: None or positive."""

    soft_cap: float | None = None
    scale: float = 1.0

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """f(z) and f'(z), out of place, in the dtype of z."""
        if self.soft_cap is None:
            return self.scale * z, self.scale
        t = torch.tanh(z / self.soft_cap)
        return self.scale * self.soft_cap * t, self.scale * (1.0 - t * t)
