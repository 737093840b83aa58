"""Ways to the column sums of a group of prompts, and which one serves a head."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from slot_vllm.kernels import backend
from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.head import Head
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace


class Form(Protocol):
    """Made for one group of prompts, each with a row to learn from, from the emptied workspace."""

    def __init__(self, head: Head, prompts: Sequence[Prompt], workspace: Workspace) -> None: ...

    @staticmethod
    def vector_bytes(head: Head) -> int:
        """What one request needs besides its rows."""

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        """What a group needs besides ``vector_bytes``, with tiles of one row."""

    def sums(self, active: int, deltas: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the first ``active`` prompts at ``deltas`` (active, d) float32: column sums less those
        of the targets (active, V) float32, so that W^T sums is the gradient of the summed losses;
        and those losses (active,) float64. The first call is of all prompts at None, zero."""


def form_for(head: Head, sharded: bool = False) -> type[Form]:
    """The fastest form that serves the head on its device. Only one knows shards."""
    if sharded or backend.uses_triton(head.weight):
        return TwoPassForm
    if head.weight.device.type == "cpu" and head.soft_cap is None:
        return CachedForm
    return PlainForm


def smallest_workspace(head: Head, shard: Shard | None = None) -> int:
    """The bytes that one request with a one-row tile needs, on every rank alike."""
    form = form_for(head, shard is not None)
    if shard is not None:
        head = shard.widest_head(head)
    return form.vector_bytes(head) + form.smallest_rows_bytes(head)
