"""One request's prompt, as the optimizer sees it."""

from dataclasses import dataclass

from torch import Tensor

from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Prompt:
    """hidden: (n, d) last hidden states in the model's dtype. tokens: (n,) int64, same device."""

    hidden: Tensor
    tokens: Tensor
    params: SlotParams

    @property
    def rows(self) -> int:
        """How many rows have a target: the last one has none."""
        return max(self.hidden.shape[0] - 1, 0)
