import math
from typing import Any

import pytest

from slot_vllm.params import SlotConfig, SlotError, SlotParams


def test_defaults_are_the_papers() -> None:
    params = SlotConfig.load(None, {}).resolve(None)
    assert params == SlotParams(
        steps=5, lr=0.1, betas=(0.9, 0.999), eps=1e-5, weight_decay=1e-8, rounding="exact"
    )


def test_precedence_request_config_environment_defaults() -> None:
    environment = {"SLOT_STEPS": "2", "CHOT_STEPS": "9", "CHOT_LR": "0.7"}
    assert SlotConfig.load(None, environment).steps == 2
    assert SlotConfig.load(None, environment).lr == 0.7
    config = SlotConfig.load({"steps": 3}, environment)
    assert (config.steps, config.lr) == (3, 0.7)
    params = config.resolve({"slot_steps": 4, "kv_transfer_params": {}})
    assert (params.steps, params.lr) == (4, 0.7)


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"slot_steps": -1}, ["slot_steps=-1", "greater than or equal to 0"]),
        ({"slot_steps": True}, ["slot_steps=True", "an integer is required"]),
        ({"slot_steps": 2.0}, ["slot_steps=2.0", "an integer is required"]),
        ({"slot_steps": "3"}, ["slot_steps='3'", "an integer is required"]),
        ({"slot_steps": 101}, ["slot_steps=101", "0 to 100"]),
        ({"slot_lr": "x"}, ["slot_lr='x'", "a number is required"]),
        ({"slot_lr": math.nan}, ["slot_lr=nan", "finite"]),
        ({"slot_lr": math.inf}, ["slot_lr=inf", "finite"]),
        ({"slot_lr": -0.1}, ["slot_lr=-0.1", "greater than or equal to 0"]),
        ({"slot_lr": 101}, ["slot_lr=101", "less than or equal to 100"]),
        ({"slot_betas": [0.9]}, ["slot_betas=[0.9]", "two numbers"]),
        ({"slot_betas": [0.9, 0.99999999]}, ["slot_betas.1=0.99999999", "equal to 0.9999999"]),
        ({"slot_eps": 1e-50}, ["slot_eps=1e-50", "0.000000000000000000000000000001"]),
        (
            {"slot_lr": 100, "slot_weight_decay": 1},
            ["slot_weight_decay=1.0", "slot_lr=100.0", "at most 1"],
        ),
        ({"slot_rounding": "up"}, ["slot_rounding='up'", "'exact' or 'model'"]),
        ({"slot_step": 3}, ["slot_step", "unknown key", "slot_steps", "slot_lr"]),
        ({"slot_max_steps": 3}, ["slot_max_steps", "unknown key"]),
    ],
)
def test_bad_requests_name_key_value_and_what_is_allowed(
    extra: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(SlotError) as error:
        SlotConfig().resolve(extra)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("settings", "environment", "part"),
    [
        ({"step": 3}, {}, "slot.step: unknown key"),
        ({"steps": True}, {}, "slot.steps=True"),
        (
            {"steps": 5, "max_steps": 4},
            {},
            "slot.steps=5: more than slot.max_steps; allowed: an integer from 0 to 4",
        ),
        ({"report_loss": 1}, {}, "slot.report_loss=1"),
        ({"workspace_mb": 0}, {}, "slot.workspace_mb=0"),
        ({"max_prompt_tokens": 1}, {}, "slot.max_prompt_tokens=1"),
        ({"max_prompt_tokens": True}, {}, "slot.max_prompt_tokens=True"),
        ({"long_prompts": "first"}, {}, "slot.long_prompts='first'"),
        ({"max_concurrent": 0}, {}, "slot.max_concurrent=0"),
        ({"long_prompts": "last"}, {}, "slot.long_prompts='last': slot.max_prompt_tokens"),
        ([], {}, "a mapping is required"),
        ({}, {"SLOT_STEPS": "many"}, "SLOT_STEPS='many'"),
        ({}, {"CHOT_LR": "fast"}, "CHOT_LR='fast'"),
        ({}, {"SLOT_LR": "nan"}, "SLOT_LR=nan: a finite"),
        ({}, {"SLOT_LR": "-1"}, "SLOT_LR=-1: input should be greater"),
        ({}, {"SLOT_STEPS": "200"}, "slot.steps=200: more than"),
    ],
)
def test_bad_engine_settings(settings: Any, environment: dict[str, str], part: str) -> None:
    with pytest.raises(SlotError, match=r".") as error:
        SlotConfig.load(settings, environment)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("settings", "refused", "skipped"),
    [
        ({}, [False, False, False], [0, 0, 0]),
        ({"max_prompt_tokens": 8}, [False, False, True], [0, 0, 0]),
        ({"max_prompt_tokens": 8, "long_prompts": "last"}, [False, False, False], [0, 0, 1]),
    ],
)
def test_long_prompts(settings: dict[str, Any], refused: list[bool], skipped: list[int]) -> None:
    config = SlotConfig.load(settings, {})
    assert [config.refuses(length) for length in (1, 8, 9)] == refused
    assert [config.skipped(length) for length in (1, 8, 9)] == skipped


@pytest.mark.parametrize(
    ("extra", "start"),
    [
        ({"slot_" + "k" * 100_000: 1}, "slot_kkk"),
        ({"slot_\ud800": 1}, "slot_\\ud800: unknown key; allowed: slot_steps, "),
        ({"slot_a\nb": 1}, "slot_a\\nb: unknown key"),
        ({"slot_lr": "v" * 100_000}, "slot_lr='vvv"),
        ({"slot_lr": "\ud800"}, "slot_lr='\\ud800'"),
        ({"slot_betas": [0.9] * 100_000}, "slot_betas=[0.9, 0.9"),
        ({"slot_betas": ["v" * 100_000, 0.9]}, "slot_betas.0='vvv"),
        ({"slot_steps": 10**400}, "slot_steps=1000"),
        ({"slot_steps": 10**5000}, "slot_steps=<int too large to show>"),
        ({"slot_steps": -(10**5000)}, "slot_steps=<int too large to show>"),
    ],
)
def test_a_message_is_one_short_line_whatever_was_sent(extra: dict[str, Any], start: str) -> None:
    with pytest.raises(SlotError) as error:
        SlotConfig().resolve(extra)
    message = str(error.value)
    assert message.startswith(start)
    assert len(message) < 300
    assert message.isprintable()


def test_a_request_object_is_left_as_it_was() -> None:
    extra = {"slot_steps": 3, "slot_betas": [0.8, 0.9]}
    SlotConfig().resolve(extra)
    assert extra == {"slot_steps": 3, "slot_betas": [0.8, 0.9]}
