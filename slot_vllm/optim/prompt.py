"""One request's prompt, as the optimizer sees it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slot_vllm.kernels.device import to_device
from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Prompt:
    """hidden: (n, d) last hidden states in the model's dtype. tokens: (n,) int64, same device.
    counts: n flags, which tokens may be learned from; None: all, but for those of
    ``params.loss_tokens`` that only a tokenizer can tell ("user", "text") they are needed."""

    hidden: Tensor
    tokens: Tensor
    params: SlotParams
    counts: Sequence[bool] | None = None

    @property
    def rows(self) -> int:
        """How many rows have a target: the last one has none."""
        return max(self.hidden.shape[0] - 1, 0)

    def of_rows_that_count(self) -> "Prompt":
        """Its rows that are learned from, with their targets; one more ends it, as every prompt.
        Raises ValueError where ``counts`` is needed and missing."""
        if not self.rows or not self.params.steps or (count := self._count()).all():
            return self
        (rows,) = count.nonzero()
        if not len(rows):
            return Prompt(self.hidden[:1], self.tokens[:1], self.params)
        index, targets = (
            to_device(places, torch.int64, self.tokens.device)
            for places in (np.append(rows, rows[-1]), np.append(0, rows + 1))
        )
        return Prompt(self.hidden[index], self.tokens[targets], self.params)

    def _count(self) -> np.ndarray:
        """(rows,) bool: of the token that each row predicts, whether it counts."""
        wanted = self.params.loss_tokens
        last = wanted if isinstance(wanted, int) else self.rows
        count = np.arange(self.rows) >= self.rows - last
        if self.counts is None and self.params.words is None:
            return count
        if self.counts is None or len(self.counts) != self.rows + 1:
            raise ValueError(
                f"loss_tokens={wanted!r}: {self.rows + 1} flags are needed that say which tokens "
                f"count; there are {None if self.counts is None else len(self.counts)}"
            )
        return count & np.asarray(self.counts, dtype=bool)[1:]

    @property
    def all_count(self) -> bool:
        """Whether it is certain that ``of_rows_that_count`` copies nothing."""
        return self.counts is None and self.params.loss_tokens == "all"
