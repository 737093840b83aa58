import math
from typing import Any

import pytest

from slot_vllm.params import REQUEST_KEYS, SHARING, SlotConfig, SlotError, SlotParams
from slot_vllm.presets import PRESETS
from slot_vllm.setting import Setting
from tests.bad_settings import BAD_SETTINGS, MAX_STEPS


def test_defaults_are_the_papers() -> None:
    params = SlotConfig.load(None, {}).resolve({"slot_lr": 0.1})
    assert params == SlotParams(
        steps=5, lr=0.1, betas=(0.9, 0.999), eps=1e-5, weight_decay=1e-8, rounding="exact"
    )


# What the engine names, its environment, and the steps of a request that names nothing and of one
# that names a setting, but no steps.
@pytest.mark.parametrize(
    ("engine", "environment", "of_all", "of_asking"),
    [
        (None, {}, 0, 5),
        ({"max_steps": 9, "workspace_mb": 64}, {}, 0, 5),
        ({"lr": 0.2}, {}, 5, 5),
        ({"preset": "paper-vllm"}, {}, 5, 5),
        ({"steps": 3}, {}, 3, 3),
        ({"steps": 0}, {}, 0, 5),
        ({"steps": 0, "lr": 0.2}, {"SLOT_STEPS": "4"}, 0, 5),
        (None, {"SLOT_STEPS": "2"}, 2, 2),
        (None, {"CHOT_STEPS": "2"}, 2, 2),
        (None, {"SLOT_LR": "0.2"}, 0, 5),
        ({"lr": 0.3}, {"SLOT_STEPS": "2"}, 2, 2),
    ],
)
def test_who_has_slot(
    engine: dict[str, Any] | None, environment: dict[str, str], of_all: int, of_asking: int
) -> None:
    config = SlotConfig.load(engine, environment)
    # As a worker has it.
    config = SlotConfig.model_validate(config.model_dump(mode="json"))
    assert config.resolve(None).steps == config.resolve({"other": 1}).steps == of_all
    assert config.resolve({"slot_eps": 1e-4}).steps == of_asking
    assert config.resolve({"slot_preset": "paper-vllm"}).steps == 5
    assert config.resolve({"slot_lr": 0.5, "slot_steps": 0}).steps == 0


def test_precedence_request_config_environment_defaults() -> None:
    environment = {"SLOT_STEPS": "2", "CHOT_STEPS": "9", "CHOT_LR": "0.7"}
    assert SlotConfig.load(None, environment).steps == 2
    assert SlotConfig.load(None, environment).lr == 0.7
    config = SlotConfig.load({"steps": 3}, environment)
    assert (config.steps, config.lr) == (3, 0.7)
    params = config.resolve({"slot_steps": 4, "kv_transfer_params": {}})
    assert (params.steps, params.lr) == (4, 0.7)


def test_a_preset_stands_between_what_is_named_and_what_is_weaker() -> None:
    environment = {"SLOT_STEPS": "2", "SLOT_LR": "0.7"}
    # Of the engine: over the environment, under the engine's own keys.
    config = SlotConfig.load({"preset": "paper-vllm", "lr": 0.01}, environment)
    assert (config.steps, config.lr, config.reduction) == (5, 0.01, "mean_over_rows")
    assert config.resolve(None) == SlotParams(preset="paper-vllm", lr=0.01)
    # Of a request: over all of the engine's, under the request's own keys.
    params = config.resolve({"slot_preset": "paper-vllm", "slot_eps": 1e-3})
    assert params == SlotParams(
        betas=(0.9, 0.95), eps=1e-3, weight_decay=1e-5, reduction="mean_over_rows"
    )
    assert config.resolve({"slot_preset": "paper"}) == SlotParams()
    # Opt-in engines are opted in by a preset's name.
    assert SlotConfig.load({"steps": 0}, {}).resolve({"slot_preset": "paper"}).steps == 5
    assert config.resolve({"slot_preset": None, "slot_steps": 1}).reduction == "mean_over_rows"


def test_settings_survive_on_their_way_to_the_worker() -> None:
    asked = {"slot_loss_tokens": 30, "slot_window": 7, "slot_half_life": 1.5}
    params = SlotConfig().resolve({"slot_preset": "paper-vllm", **asked})
    assert (params.window, params.half_life) == (7, 1.5)
    assert SlotParams(**params.model_dump(mode="json")) == params
    config = SlotConfig.load({"preset": "paper-vllm"}, {})
    assert SlotConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("key", PRESETS)
def test_a_preset_is_valid_data(key: str) -> None:
    assert SlotParams(**PRESETS[key]) == SlotParams(preset=key)


def test_what_is_named_none_turns_a_default_off() -> None:
    config = SlotConfig.load({"window": 3, "half_life": 2}, {})
    assert config.resolve(None) == SlotParams(window=3, half_life=2.0)
    keys = ("slot_window", "slot_half_life")
    assert config.resolve(dict.fromkeys(keys, "none")) == SlotParams()


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
        ({"slot_window": 1.0}, ["slot_window=1.0", "an integer is required", "'none'"]),
        ({"slot_window": True}, ["slot_window=True", "an integer is required"]),
        ({"slot_window": 2**31}, ["slot_window=2147483648", "1 to 2147483647"]),
        ({"slot_half_life": -1}, ["slot_half_life=-1", "greater than 0"]),
        ({"slot_half_life": math.inf}, ["slot_half_life=inf", "finite"]),
        ({"slot_half_life": True}, ["slot_half_life=True", "a number is required"]),
        ({"slot_half_life": 10**400}, ["slot_half_life=1000", "a number above 0"]),
        ({"slot_preset": "papers"}, ["slot_preset='papers'", "'paper' or 'paper-vllm'"]),
        ({"slot_preset": ["safe"]}, ["slot_preset=['safe']", "'paper' or 'paper-vllm'"]),
        ({"slot_loss_tokens": 0}, ["slot_loss_tokens=0", "an integer from 1"]),
        ({"slot_loss_tokens": 2**31}, ["slot_loss_tokens=2147483648", "1 to 2147483647"]),
        ({"slot_loss_tokens": True}, ["slot_loss_tokens=True", "an integer from 1"]),
        ({"slot_loss_tokens": "tool"}, ["slot_loss_tokens='tool'", "'all', 'text', 'system'"]),
        ({"slot_loss_tokens": []}, ["slot_loss_tokens=[]", "a list of these roles"]),
        ({"slot_loss_tokens": ["user", "text"]}, ["['user', 'text']", "a list of these roles"]),
        ({"slot_loss_tokens": ["user", 3]}, ["['user', 3]", "a list of these roles"]),
        ({"slot_reduction": "sum"}, ["slot_reduction='sum'", "'mean' or 'mean_over_rows'"]),
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


@pytest.mark.parametrize("key", REQUEST_KEYS)
def test_every_key_s_error_names_its_range(key: str) -> None:
    value, allowed = BAD_SETTINGS[key]
    bad: Any
    for bad in (value, {}):
        with pytest.raises(SlotError) as error:
            SlotConfig(max_steps=MAX_STEPS).resolve({key: bad})
        message = str(error.value)
        assert message.startswith(f"{key}={bad!r}: ")
        assert message.endswith(f"; allowed: {allowed}")
        assert message.count("allowed") == 1


@pytest.mark.parametrize("key", SlotConfig.model_fields)
def test_every_engine_setting_s_error_names_its_range(key: str) -> None:
    with pytest.raises(SlotError, match=rf"^slot\.{key}={{}}: .+; allowed: \S"):
        SlotConfig.load({key: {}}, {})


@pytest.mark.parametrize("name", SlotParams.model_fields)
def test_what_is_tried_of_a_setting_is_valid_and_not_its_default(name: str) -> None:
    field = SlotParams.model_fields[name]
    tried = Setting.of(field).tried
    assert tried and field.default not in tried
    for value in tried:
        params = SlotParams.model_validate({name: value})
        assert name == "preset" or getattr(params, name) == value


def test_only_what_says_where_a_delta_is_added_is_no_part_of_it() -> None:
    assert {"window", "half_life"} == SHARING


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
        ({"report_loss": 1}, {}, "slot.report_loss=1: input should be a valid boolean; allowed: "),
        ({"workspace_mb": 0}, {}, "slot.workspace_mb=0"),
        ({"max_prompt_tokens": 1}, {}, "slot.max_prompt_tokens=1"),
        ({"max_prompt_tokens": True}, {}, "slot.max_prompt_tokens=True"),
        ({"long_prompts": "first"}, {}, "slot.long_prompts='first'"),
        (
            {"max_concurrent": 0},
            {},
            "slot.max_concurrent=0: input should be greater than or equal to 1; "
            "allowed: an integer from 1 or null",
        ),
        ({"long_prompts": "last"}, {}, "slot.long_prompts='last': slot.max_prompt_tokens"),
        ([], {}, "a mapping is required"),
        ({}, {"SLOT_STEPS": "many"}, "SLOT_STEPS='many'"),
        ({}, {"CHOT_LR": "fast"}, "CHOT_LR='fast': not a number; allowed: a number from 0 to 100"),
        ({}, {"SLOT_LR": "nan"}, "SLOT_LR=nan: a finite"),
        (
            {},
            {"SLOT_LR": "-1"},
            "SLOT_LR=-1: input should be greater than or equal to 0; allow",
        ),
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
        ({"slot_\ud800": 1}, "slot_\\ud800: unknown key; allowed: slot_preset, "),
        ({"slot_a\nb": 1}, "slot_a\\nb: unknown key"),
        ({"slot_lr": "v" * 100_000}, "slot_lr='vvv"),
        ({"slot_lr": "\ud800"}, "slot_lr='\\ud800'"),
        ({"slot_betas": [0.9] * 100_000}, "slot_betas=[0.9, 0.9"),
        ({"slot_betas": ["v" * 100_000, 0.9]}, "slot_betas.0='vvv"),
        ({"slot_steps": 10**400}, "slot_steps=1000"),
        ({"slot_steps": 10**60_000}, "slot_steps=<int too large to show>"),
        ({"slot_steps": -(10**60_000)}, "slot_steps=<int too large to show>"),
    ],
)
def test_a_message_is_one_short_line_whatever_was_sent(extra: dict[str, Any], start: str) -> None:
    with pytest.raises(SlotError) as error:
        SlotConfig().resolve(extra)
    message = str(error.value)
    assert message.startswith(start)
    assert len(message) < 500
    assert message.isprintable()


def test_a_request_object_is_left_as_it_was() -> None:
    extra = {"slot_steps": 3, "slot_betas": [0.8, 0.9]}
    SlotConfig().resolve(extra)
    assert extra == {"slot_steps": 3, "slot_betas": [0.8, 0.9]}
