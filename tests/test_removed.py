"""Settings and presets that were removed: what names one is told so; stored runs are read on."""

from typing import Any

import pytest

from slot_vllm.params import REQUEST_KEYS, SlotConfig, SlotError, SlotParams
from slot_vllm.removed import REMOVED, of_stored_run, split

NAMES = ["optimizer", "lr_schedule", "tolerance", "target", "guard", "max_kl"]
SAID = (
    r"removed in 0\.2\.0 \(it showed no use on 20 problems of a real model, see docs/study\.md\): "
)


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_setting_is_an_error_whatever_its_value(name: str) -> None:
    assert f"slot_{name}" not in REQUEST_KEYS
    removal = REMOVED[name]
    for value in (removal.default, "sgd", 10**5000):
        with pytest.raises(SlotError, match=rf"^slot_{name}: {SAID}") as error:
            SlotConfig().resolve({"slot_lr": "x", f"slot_{name}": value})
        assert str(error.value).endswith(removal.instead)
        with pytest.raises(SlotError, match=rf"^slot\.{name}: {SAID}"):
            SlotConfig.load({name: value}, {})


def test_a_setting_that_never_was_is_unknown() -> None:
    with pytest.raises(SlotError, match=r"^slot_optimiser: unknown key"):
        SlotConfig().resolve({"slot_optimiser": "sgd"})


def test_a_removed_preset() -> None:
    with pytest.raises(SlotError, match=rf"^slot_preset=safe: {SAID}it left nothing of delta; "):
        SlotConfig().resolve({"slot_lr": "x", "slot_preset": "safe"})
    with pytest.raises(SlotError, match=rf"^slot\.preset=safe: {SAID}"):
        SlotConfig.load({"preset": "safe"}, {})
    assert SlotConfig().resolve({"slot_preset": "paper"}) == SlotParams()


def test_of_stored_settings_the_former_defaults_are_dropped() -> None:
    stored = {"lr": 0.1, "optimizer": "adamw", "tolerance": 0, "target": "both", "new": 1}
    assert split(stored) == ({"lr": 0.1, "new": 1}, {"target": "both"})


@pytest.mark.parametrize(("used", "left"), [(True, {"optimizer": "sgd"}), (False, {})])
def test_a_stored_configuration(used: bool, left: dict[str, Any]) -> None:
    config = {
        "name": "x",
        "target": "is no setting here",
        "arms": [{"name": "a", "optimizer": "sgd", "lr_schedule": "constant"}, "no arm"],
        "sweep": {"steps": [1], "settings": {"tolerance": 0.0, "optimizer": "sgd"}},
    }
    before = str(config)
    assert of_stored_run(config, used) == {
        "name": "x",
        "target": "is no setting here",
        "arms": [{"name": "a", **left}, "no arm"],
        "sweep": {"steps": [1], "settings": left},
    }
    assert str(config) == before
    assert of_stored_run({"arms": None, "sweep": None}) == {"arms": None, "sweep": None}
