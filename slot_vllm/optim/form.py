"""Ways to the column sums of a group of prompts, and which one serves a head."""

from slot_vllm.kernels import backend
from slot_vllm.optim.cached_form import CachedForm
from slot_vllm.optim.head import Head
from slot_vllm.optim.plain_form import PlainForm
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.two_pass_form import TwoPassForm

# ``PlainForm`` says what each of their methods does.
Form = CachedForm | PlainForm | TwoPassForm


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
