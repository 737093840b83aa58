"""What is left of each request's W delta at a step's rows of logits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.kernels.device import to_device
from slot_vllm.optim.fading import WHOLE, factors, limits


def fading(
    adapted: Sequence[tuple[int, SlotRequest]], batch: BatchView, device: torch.device
) -> Callable[[], Tensor] | None:
    """Gives ``Additions.factors``; None where every request gets all of W delta. adapted: those
    with a delta and their slots. By positions on the device: with asynchronous scheduling and
    drafts the host does not know yet how many tokens a request has."""
    if all(limits(request.params) == WHOLE for _, request in adapted):
        return None

    def look_up() -> Tensor:
        own = [(0.0, *WHOLE)] * batch.num_slots
        for slot, request in adapted:
            own[slot] = (float(len(request.tokens)), *limits(request.params))
        slots = to_device(own, torch.float64, device)[batch.row_slots]
        lengths, windows, half_lives = slots.unbind(1)
        # The row of the prompt's last token chooses the first one, t = 0.
        return factors(batch.positions() + 1 - lengths, windows, half_lives)

    return look_up
