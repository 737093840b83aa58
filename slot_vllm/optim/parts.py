"""Which rows of a prompt delta is learned from, which judge it, and which only bound or show it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slot_vllm.optim.holdout import held_out
from slot_vllm.optim.prompt import Prompt
from slot_vllm.params import SlotParams


@dataclass(frozen=True)
class Parts:
    """The rows of one prompt, each row in one part at most; a part is a Prompt of its rows.

    fit: learned from. held: those of a holdout, or None. rest: with a trust region, all rows that
    are in neither; the last row of the prompt is the last of them, and alone where it is wanted
    without one. Its targets mean nothing.
    """

    prompt: Prompt
    fit: Prompt
    held: Prompt | None = None
    rest: Prompt | None = None

    @property
    def all(self) -> list[Prompt]:
        return [part for part in (self.fit, self.held, self.rest) if part is not None]

    @property
    def all_held(self) -> bool:
        """Whether rows count, but too few for a holdout to tell: nothing is learned."""
        return self.held is not None and not self.fit.rows

    @property
    def bounded(self) -> bool:
        """Whether there is a trust region."""
        return self.rest is not None and self.prompt.params.max_kl is not None

    @property
    def examined(self) -> bool:
        """Whether W delta is looked at, and delta perhaps scaled, once it is learned."""
        return self.held is not None or self.rest is not None


def is_whole(params: SlotParams) -> bool:
    """Whether all rows of a prompt are learned from, and nothing else is asked of them."""
    return params.loss_tokens == "all" and params.guard == "none" and params.max_kl is None


def split(prompt: Prompt, last: bool = False) -> Parts:
    """last: whether the last row is wanted anyway. Raises ValueError where ``counts`` is needed and
    missing."""
    params = prompt.params
    if not prompt.rows or not params.steps:
        return Parts(prompt, prompt)
    learned = _counted(prompt)
    whole = learned.all() and params.guard == "none" and params.max_kl is None
    if whole and not last:
        return Parts(prompt, prompt)
    held = np.zeros_like(learned)
    if params.guard == "holdout":
        held[learned.nonzero()[0][held_out(int(learned.sum()))]] = True
    fit, rest = learned & ~held, None
    judges = _part(prompt, held) if held.any() else None
    if fit.any() and params.max_kl is not None:
        rest = _part(prompt, np.append(~learned, True))
    elif fit.any() and last:
        rest = _part(prompt, np.arange(prompt.rows + 1) == prompt.rows)
    return Parts(prompt, prompt if whole else _part(prompt, fit), judges, rest)


def _counted(prompt: Prompt) -> np.ndarray:
    """(rows,) bool: of the token that each row predicts, whether it counts."""
    wanted = prompt.params.loss_tokens
    if isinstance(wanted, int):
        return np.arange(prompt.rows) >= prompt.rows - wanted
    if wanted == "all":
        return np.ones(prompt.rows, dtype=bool)
    if prompt.counts is None or len(prompt.counts) != prompt.rows + 1:
        raise ValueError(
            f"loss_tokens={wanted!r}: {prompt.rows + 1} flags are needed that say which tokens "
            f"count; there are {None if prompt.counts is None else len(prompt.counts)}"
        )
    return np.asarray(prompt.counts, dtype=bool)[1:]


def _part(prompt: Prompt, chosen: np.ndarray) -> Prompt:
    """A prompt whose rows are those that are ``chosen``, with their targets; one more row ends it,
    as in every prompt."""
    (rows,) = chosen.nonzero()
    if not len(rows):
        return Prompt(prompt.hidden[:1], prompt.tokens[:1], prompt.params)
    index = _to_device(np.append(rows, rows[-1]), prompt.tokens.device)
    targets = _to_device(np.append(0, np.minimum(rows + 1, prompt.rows)), prompt.tokens.device)
    return Prompt(prompt.hidden[index], prompt.tokens[targets], prompt.params)


def _to_device(values: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(values.astype(np.int64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
