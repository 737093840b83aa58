"""The linear head of a causal language model: logits = f(h W^T + bias)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slot_vllm.kernels.shift import shift
from slot_vllm.params import SlotError

# Of random hidden states, on which a model's logits are compared with f(h W^T).
PROBE_ROWS = 4
# By how much of the largest logit they may differ: by the rounding of the logits.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
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

    def exact_shift(self, deltas: Tensor, out: Tensor | None = None) -> Tensor:
        """W delta in float32, (B, V), in ``out`` if it is given, whatever the weight's dtype.

        This is what is added to the logits: in bf16 a small delta would be rounded away.
        """
        deltas, device = deltas.float(), self.weight.device
        if out is None:
            out = torch.empty(len(deltas), self.vocabulary, dtype=torch.float32, device=device)
        if device.type == "cpu":
            shift(self.weight, deltas, out)
            return out
        if self.weight.dtype == torch.float32:
            return torch.mm(deltas, self.weight.T, out=out)
        tile = max(1, _WIDENED_BYTES // (4 * self.hidden_size))
        for start in range(0, self.vocabulary, tile):
            stop = start + tile
            out[:, start:stop] = deltas @ self.weight[start:stop].float().T
        return out


def weight_of(module: Any, owner: str, size: int | None = None) -> Tensor:
    """The weight of a linear head's module, (V, d). Raises SlotError for another, as a quantized
    one. size: d, where it is known. owner: of the module, as errors name it."""
    weight = getattr(module, "weight", None)
    if (
        not isinstance(weight, Tensor)
        or weight.dtype not in _TOLERANCE
        or weight.dim() != 2
        or size not in (None, weight.shape[1])
    ):
        found = "none" if weight is None else f"{tuple(weight.shape)} of {weight.dtype}"
        raise SlotError(
            f"SLOT needs the unquantized weight (vocabulary x {size or 'hidden size'}) of a linear "
            f"head; {owner}'s {type(module).__name__} has {found}"
        )
    return weight


def check_shape(logits: Tensor, vocabulary: int, owner: str) -> None:
    """Raises SlotError if they are not (PROBE_ROWS, V)."""
    shape = (PROBE_ROWS, vocabulary)
    if logits.shape != shape:
        raise SlotError(
            f"SLOT needs logits = f(h W^T) of shape {shape}; {owner} gives {tuple(logits.shape)}"
        )


def check_difference(found: float, dtype: torch.dtype, owner: str) -> None:
    """Raises SlotError if logits differ by more of the largest than what rounding them makes.
    dtype: the weight's."""
    if not found <= _TOLERANCE[dtype]:
        raise SlotError(
            f"SLOT needs logits = f(h W^T); {owner} differs from that by {found:.2g} of the "
            f"largest logit (allowed: {_TOLERANCE[dtype]:.2g})"
        )
