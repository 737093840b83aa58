"""W delta of prompts, and of their mean: the tokens that it raises and lowers most."""

from collections.abc import Callable, Sequence

import numpy as np

from slot_vllm.evaluation.inspection_record import Shifts, TokenShift

Vector = np.ndarray


def extremes(shifts: Vector, top: int, text: Callable[[int], str]) -> Shifts:
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


def _largest(shifts: Vector, top: int) -> list[int]:
    found = np.flatnonzero(shifts > 0)
    if len(found) > top:
        least = np.partition(shifts[found], -top)[-top]
        found = found[shifts[found] >= least]
    return found[np.argsort(-shifts[found], kind="stable")][:top].tolist()
