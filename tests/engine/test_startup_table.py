"""What the log says of an engine's settings."""

from typing import Any

import pytest

from slot_vllm.engine.worker.startup_table import startup_table
from slot_vllm.params import SlotConfig
from tests.engine.test_step import make_state


def rows(**settings: Any) -> dict[str, str]:
    config = SlotConfig.model_validate({"workspace_mb": 1, "hidden_cache": "off", **settings})
    table = startup_table(config, True, "50 x 16", make_state())
    title, *lines = table.splitlines()
    assert title.endswith("on the V2 model runner")
    return {line[2:16].rstrip(): line[16:] for line in lines}


def test_what_is_as_usual_is_left_out() -> None:
    found = rows()
    assert [*found] == ["head", "workspace", "hidden cache", "delta cache", "requests", "at most"]
    assert (found["head"], found["at most"]) == ("50 x 16", "100 steps")
    # One line that says how every request gets SLOT.
    assert found["requests"] == (
        "no SLOT for those that name no slot_* key, else steps 5, lr 0.1; for all: "
        """--additional-config '{"slot": {"steps": 5}}' or SLOT_STEPS=5"""
    )


@pytest.mark.parametrize(
    ("settings", "row", "text"),
    [
        ({"steps": 3, "lr": 0.05}, "requests", "steps 3, lr 0.05"),
        ({"steps": 3, "window": 8}, "requests", "steps 3, lr 0.1, window 8"),
        (
            {"max_prompt_tokens": 64, "long_prompts": "last", "max_concurrent": 2},
            "at most",
            "100 steps, max_prompt_tokens 64 (long_prompts last), max_concurrent 2",
        ),
        (
            {"report_loss": True, "keep_deltas": 4, "receipts": 9},
            "readable",
            "report_loss on, keep_deltas 4, receipts 9",
        ),
    ],
)
def test_what_is_not(settings: dict[str, Any], row: str, text: str) -> None:
    assert rows(**settings)[row] == text
