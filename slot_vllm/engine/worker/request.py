"""One request, from its arrival at the worker to its departure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal

from torch import Tensor

from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.step_timer import StepTime
from slot_vllm.loss_tokens import flags
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams

# prefilling: its delta is not known yet. applied: it learned its own. shared: another one learned
# it. The others have none; search_step: a further step of a search, whose first one counts.
Status = Literal["prefilling", "applied", "shared", "failed", "bypassed", "plain", "search_step"]


@dataclass
class TrackedRequest:
    """external_id: what RequestOutput.request_id shows. reason: why it was bypassed or failed.
    learning: of the step in which it learned its own delta."""

    external_id: str
    status: Status
    reason: str | None = None
    params: SlotParams | None = None
    learned: Learned | None = None
    learning: StepTime | None = None


@dataclass(kw_only=True)
class SlotRequest(TrackedRequest):
    """One that arrived with SLOT.

    key: what requests that share its delta have in common; None until its prompt is complete, and
        if nobody may share it.
    skipped: how many of its first tokens it does not learn from.
    shareable: whether its tokens say all about its prompt.
    epoch: of the weights when it came.
    spans: where in the whole prompt the tokens stand that are learned from, if only admission can
        tell.
    images: what the prompt has besides its tokens, by name and place.
    seen: up to where its prompt was computed or read from the prefix cache.
    hidden: without a hidden-state cache, (n - skipped, d), the rows that it learns from while the
        prompt is incomplete; those among the prompt's first ``filled`` are there.
    failure: what failed on this rank; its ``status`` follows once all ranks know.
    """

    req_id: str
    params: SlotParams
    tokens: list[int]
    status: Status = "prefilling"
    key: bytes | None = None
    skipped: int = 0
    lora_request: Any = None
    cache_salt: str | None = None
    shareable: bool = False
    epoch: tuple[int, int] = (0, 0)
    spans: Sequence[Sequence[int]] | None = None
    images: Sequence[tuple[str, int]] = ()
    seen: int = 0
    hidden: Tensor | None = None
    filled: int = 0
    failure: Failure | None = None

    @property
    def table_key(self) -> str:
        """Of its row in the table, which requests that share a delta share."""
        return self.req_id if self.key is None else self.key.hex()

    @property
    def rounds(self) -> bool:
        """Whether delta is added to the hidden states, in the model's dtype."""
        return self.params.rounding == "model"

    @property
    def learns_from(self) -> list[int]:
        return self.tokens[self.skipped :]

    @property
    def targets(self) -> list[int]:
        """Of those, the tokens that may be predicted: the numbers that stand for an image need not
        be in the head's vocabulary."""
        counts = self.counts
        return self.learns_from if counts is None else list(compress(self.learns_from, counts))

    @property
    def counts(self) -> list[bool] | None:
        """Of the tokens of ``learns_from``, which may be learned from; see ``Prompt``."""
        if self.spans is None:
            return None
        return flags(self.spans, len(self.tokens))[self.skipped :]
