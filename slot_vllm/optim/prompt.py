"""One request's prompt, as the optimizer sees it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Prompt:
    """hidden: (n, d) last hidden states in the model's dtype. tokens: (n,) int64, same device.
    counts: n flags, which tokens ``params.loss_tokens`` means; needed for those that only a
    tokenizer can tell ("user", "text")."""

    hidden: Tensor
    tokens: Tensor
    params: SlotParams
    counts: Sequence[bool] | None = None

    @property
    def rows(self) -> int:
        """How many rows have a target: the last one has none."""
        return max(self.hidden.shape[0] - 1, 0)
