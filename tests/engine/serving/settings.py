"""Generated ``vllm_xargs``: valid ones, such with a mistake, and whatever JSON can say."""

from typing import Any, get_args

from hypothesis import strategies as st

from slot_vllm.chat_turns import ROLES
from slot_vllm.params import REQUEST_KEYS, SlotParams
from slot_vllm.presets import PRESETS
from slot_vllm.setting import Setting

numbers = st.one_of(
    st.integers(-5, 25),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
)
leaves = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=20))
values = st.one_of(
    leaves,
    st.lists(numbers, max_size=3),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)
keys = st.one_of(
    st.sampled_from(REQUEST_KEYS),
    st.sampled_from(("slot", "slot_", "slot_delta", "SLOT_STEPS", "slot_steps ", "other")),
    st.text(max_size=12),
)


def _choices(name: str) -> Any:
    return st.sampled_from(get_args(SlotParams.model_fields[name].annotation))


valid: dict[str, Any] = {
    f"slot_{name}": st.sampled_from(Setting.of(field).tried)
    for name, field in SlotParams.model_fields.items()
} | {
    "slot_preset": st.sampled_from(list(PRESETS)),
    "slot_steps": st.integers(0, 20),
    "slot_lr": st.one_of(st.floats(0, 1), st.floats(0, 100)),
    "slot_betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    "slot_eps": st.floats(1e-30, 1),
    "slot_weight_decay": st.one_of(st.floats(0, 0.01), st.floats(0, 1)),
    "slot_rounding": _choices("rounding"),
    "slot_reduction": _choices("reduction"),
    "slot_loss_tokens": st.one_of(
        st.sampled_from(("all", "text", *ROLES)),
        st.lists(st.sampled_from(ROLES), min_size=1, max_size=3),
        st.integers(1, 300),
    ),
    "slot_window": st.one_of(st.just("none"), st.integers(1, 300)),
    "slot_half_life": st.one_of(st.just("none"), st.floats(1e-3, 1e6)),
}
assert set(valid) == set(REQUEST_KEYS)
good = st.fixed_dictionaries({}, optional=valid)
mixed = st.builds(lambda a, b: a | b, good, st.dictionaries(keys, values, max_size=2))
bodies = st.one_of(good, mixed, st.dictionaries(keys, values, max_size=4), values)
