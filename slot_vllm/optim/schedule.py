"""The learning rate of each step as a multiple of ``lr``."""

import math

from slot_vllm.params import SlotParams


def factors(params: SlotParams) -> list[float]:
    """One per step. As of transformers' schedules without a warm-up: the first is 1, and the one
    after the last would be 0."""
    parts = [t / params.steps for t in range(params.steps)]
    match params.lr_schedule:
        case "linear":
            return [1.0 - part for part in parts]
        case "cosine":
            return [0.5 * (1.0 + math.cos(math.pi * part)) for part in parts]
    return [1.0] * params.steps
