"""One bad value of each setting of a request, and the range that its error must name.

A setting that is not here has a word for its bad value, and the range that its field says.
"""

from typing import Any

from slot_vllm.params import REQUEST_PREFIX, SlotParams
from slot_vllm.validation_errors import allowed_values

# For an engine that allows 20 steps.
MAX_STEPS = 20
BAD_SETTINGS: dict[str, tuple[Any, str]] = {
    REQUEST_PREFIX + name: ("no such value", allowed_values(field))
    for name, field in SlotParams.model_fields.items()
} | {
    "slot_preset": ("save", "'paper' or 'paper-vllm'"),
    "slot_steps": (-1, "an integer from 0 to 20"),
    "slot_lr": (101, "a number from 0 to 100"),
    "slot_betas": ([0.9], "a list of 2, each a number from 0 to 0.9999999"),
    "slot_eps": (0, "a number from 1e-30 to 1"),
    "slot_weight_decay": (1.5, "a number from 0 to 1"),
    "slot_rounding": ("down", "'exact' or 'model'"),
    "slot_window": (0, "'none' or an integer from 1 to 2147483647"),
    "slot_half_life": (0, "'none' or a number above 0"),
    "slot_reduction": ("sum", "'mean' or 'mean_over_rows'"),
    "slot_loss_tokens": (
        0,
        "'all', 'text', 'system', 'user', 'assistant', a list of these roles, or an integer from "
        "1 to 2147483647",
    ),
}
