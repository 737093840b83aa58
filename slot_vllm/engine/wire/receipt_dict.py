"""A receipt on its way from a worker to who asked for it."""

from typing import Literal

# Of typing it serves pydantic only as of Python 3.12.
from typing_extensions import TypedDict

# How long there is one after its request has finished.
MOST_SECONDS = 15 * 60

Outcome = Literal["applied", "shared", "bypassed", "failed", "plain", "one_token"]


class ReceiptDict(TypedDict):
    """A receipt as it is read; what did not happen, or is not a finite number, is None.

    reason: why it was bypassed or failed. steps, lr: its settings, of one that is not plain.
    tokens: how many tokens delta was learned from. loss_before, loss_after: their mean loss without
    delta and with it, nats per token. last_kl: KL(adapted || own) of the next-token distribution at
    the prompt's last position, nats. seconds: of learning, for all ``prompts`` that came to be
    learned from in the same engine step; None for a delta that another request learned.
    """

    request_id: str
    outcome: Outcome
    reason: str | None
    steps: int | None
    lr: float | None
    tokens: int | None
    loss_before: float | None
    loss_after: float | None
    last_kl: float | None
    seconds: float | None
    prompts: int | None
