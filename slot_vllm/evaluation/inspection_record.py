"""What ``inspection.json`` holds: a list of Inspection; and the tokens that W delta moves most."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from slot_vllm.evaluation.record import Recorded


class TokenShift(Recorded):
    """id: the token's. token: readable (see TokenText). shift: of its logit, before the model's
    soft cap and scale; in a mean, the mean shift."""

    id: int
    token: str
    shift: float


class Shifts(Recorded):
    """raised: the largest shifts above the mean, largest first. lowered: those below, lowest first.

    vocabulary_mean: over all tokens; what is common to all shifts changes no probability.
    """

    vocabulary_mean: float | None = None
    raised: list[TokenShift] = Field(default_factory=list)
    lowered: list[TokenShift] = Field(default_factory=list)

    def less_mean(self, shift: TokenShift) -> float:
        """As it is, where the mean was not recorded."""
        return shift.shift - (self.vocabulary_mean or 0.0)


class PromptShifts(Shifts):
    """W delta of one prompt. id: of the problem. prompt: as the model read it."""

    id: str
    prompt: str


class Inspection(Shifts):
    """The mean of W delta over a task's problems, of one arm.

    problems: how many are in the mean: those that have a delta. prompts: these, in the task's
    order; none in the packed form.
    """

    arm: str
    task: str
    problems: int
    prompts: list[PromptShifts] = Field(default_factory=list)


def extremes(shifts: np.ndarray, top: int, text: Callable[[int], str]) -> Shifts:
    """The tokens that are raised and those that are lowered most, at most ``top`` each.

    shifts: [V]; of equal ones the lower id comes first. Up and down is seen from their mean.
    """
    mean = float(shifts.mean(dtype=np.float64)) if len(shifts) else 0.0

    def named(tokens: Sequence[int]) -> list[TokenShift]:
        return [
            TokenShift(id=token, token=text(token), shift=float(shifts[token])) for token in tokens
        ]

    moved = shifts - mean
    raised, lowered = named(_largest(moved, top)), named(_largest(-moved, top))
    return Shifts(vocabulary_mean=mean, raised=raised, lowered=lowered)


def _largest(shifts: np.ndarray, top: int) -> list[int]:
    found = np.flatnonzero(shifts > 0)
    if len(found) > top:
        least = np.partition(shifts[found], -top)[-top]
        found = found[shifts[found] >= least]
    return found[np.argsort(-shifts[found], kind="stable")][:top].tolist()
