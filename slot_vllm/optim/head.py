"""The linear head of a causal language model: logits = f(h W^T + bias)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slot_vllm.kernels.shift import shift

# Of W in float32, at a time.
_WIDENED_BYTES = 16 << 20


@dataclass(frozen=True)
class Head:
    """weight: (V, d), the vocabulary's padding already cut off. bias: (V,) or None.

    f is ``scale * soft_cap * tanh(z / soft_cap)``, or ``scale * z`` without a soft cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    scale: float = 1.0

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.weight.shape[1]

    def activate(self, z: Tensor) -> Tensor:
        """f, out of place, in the dtype of z."""
        if self.soft_cap is not None:
            z = self.soft_cap * torch.tanh(z / self.soft_cap)
        return self.scale * z if self.scale != 1.0 else z

    def product(self, hidden: Tensor, out: Tensor) -> None:
        """out = h W^T + bias, before f, in the weight's dtype. hidden: (r, d), out: (r, V)."""
        # torch would resize ``out``, and with it the workspace that it is a part of.
        assert out.shape == (hidden.shape[0], self.vocabulary)
        hidden = hidden.to(self.weight.dtype)
        if self.bias is None:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            torch.addmm(self.bias.to(self.weight.dtype), hidden, self.weight.T, out=out)

    def exact_shift(self, deltas: Tensor, out: Tensor) -> None:
        """W delta in float32 into ``out`` (B, V) float32, whatever the weight's dtype.

        This is what is added to the logits: in bf16 a small delta would be rounded away.
        """
        deltas = deltas.float()
        if self.weight.device.type == "cpu":
            shift(self.weight, deltas, out)
            return
        if self.weight.dtype == torch.float32:
            torch.mm(deltas, self.weight.T, out=out)
            return
        tile = max(1, _WIDENED_BYTES // (4 * self.hidden_size))
        for start in range(0, self.vocabulary, tile):
            stop = start + tile
            out[:, start:stop] = deltas @ self.weight[start:stop].float().T
