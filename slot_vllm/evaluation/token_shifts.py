"""W delta of prompts, and of their mean: the tokens that it raises and lowers most."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Shifts = np.ndarray


@dataclass(frozen=True)
class TokenShift:
    """id: the token's. token: readable (see TokenText). shift: of its logit, before the model's
    soft cap and scale; in a mean, the mean shift."""

    id: int
    token: str
    shift: float


@dataclass(frozen=True)
class PromptShifts:
    """W delta of one prompt. id: of the problem. prompt: as the model read it.

    raised: the largest shifts above 0, largest first. lowered: those below 0, lowest first.
    """

    id: str
    prompt: str
    raised: list[TokenShift]
    lowered: list[TokenShift]


@dataclass(frozen=True)
class Inspection:
    """The mean of W delta over a task's problems, of one arm.

    problems: how many are in the mean: those that have a delta. prompts: these, in the task's
    order. raised, lowered: as in PromptShifts. vocabulary_mean: of the mean over all tokens; what
    is common to all shifts changes no probability.
    """

    arm: str
    task: str
    problems: int
    vocabulary_mean: float
    raised: list[TokenShift]
    lowered: list[TokenShift]
    prompts: list[PromptShifts]

    def as_json(self) -> dict[str, Any]:
        """The entry in ``inspection.json``."""
        return asdict(self)


class Mean:
    """The mean of vectors, in float64. Its bits depend on the order in which they are added."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: np.ndarray | None = None

    def add(self, shifts: Shifts) -> None:
        """shifts: [V] float32."""
        if self._sum is None:
            self._sum = np.zeros(shifts.shape)
        self._sum += shifts
        self.count += 1

    def value(self) -> Shifts:
        """[V] float64; empty if nothing was added."""
        return np.zeros(0) if self._sum is None else self._sum / self.count


def extremes(
    shifts: Shifts, top: int, text: Callable[[int], str]
) -> tuple[list[TokenShift], list[TokenShift]]:
    """The tokens that are raised and those that are lowered most, at most ``top`` each.

    shifts: [V]; of equal ones the lower id comes first.
    """

    def named(tokens: Sequence[int]) -> list[TokenShift]:
        return [TokenShift(token, text(token), float(shifts[token])) for token in tokens]

    return named(_largest(shifts, top)), named(_largest(-shifts, top))


def _largest(shifts: Shifts, top: int) -> list[int]:
    found = np.flatnonzero(shifts > 0)
    if len(found) > top:
        least = np.partition(shifts[found], -top)[-top]
        found = found[shifts[found] >= least]
    return found[np.argsort(-shifts[found], kind="stable")][:top].tolist()
