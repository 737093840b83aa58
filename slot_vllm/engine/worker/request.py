"""One request with SLOT, from its arrival at the worker to its departure."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from slot_vllm.engine.worker.failures import Failure, Reason
from slot_vllm.engine.worker.step_timer import StepTime
from slot_vllm.loss_tokens import flags
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams


@dataclass
class SlotRequest:
    """external_id: what RequestOutput.request_id shows. row: its name in the table, which requests
    that share a delta share. skipped: how many of its first tokens it does not learn from.
    shareable: whether its tokens say all about its prompt. epoch: of the weights when it came.
    seen: up to where its prompt was computed or read from the prefix cache. hidden: without a
    hidden-state cache, (n - skipped, d), the rows that it learns from while the prompt is
    incomplete; those among the prompt's first ``filled`` are there. failure: why it goes on without
    a delta. spans: where in the whole prompt the tokens stand that are learned from, if only
    admission can tell. shares: whether another request learned its delta. learning: of the step in
    which it learned its own."""

    external_id: str
    params: SlotParams
    tokens: list[int]
    row: str
    skipped: int = 0
    lora_request: Any = None
    cache_salt: str | None = None
    shareable: bool = False
    epoch: tuple[int, int] = (0, 0)
    seen: int = 0
    hidden: Tensor | None = None
    filled: int = 0
    learned: Learned | None = None
    failure: Failure | None = None
    spans: Sequence[Sequence[int]] | None = None
    shares: bool = False
    learning: StepTime | None = None

    @property
    def failed(self) -> bool:
        return self.failure is not None

    @property
    def rounds(self) -> bool:
        """Whether delta is added to the hidden states, in the model's dtype."""
        return self.params.rounding == "model"

    @property
    def learns_from(self) -> list[int]:
        return self.tokens[self.skipped :]

    @property
    def counts(self) -> list[bool] | None:
        """Of the tokens of ``learns_from``, which ``slot_loss_tokens`` means; see ``Prompt``."""
        if self.spans is None:
            return None
        return flags(self.spans, len(self.tokens))[self.skipped :]

    @contextmanager
    def containing(self, place: Reason) -> Iterator[None]:
        """What is raised within is noted, and raised no further."""
        try:
            yield
        except Exception as error:
            self.failure = Failure.of(error, place)
