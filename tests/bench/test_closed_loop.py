"""The loop, against an engine that says one token per request and step."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from slot_vllm.bench.closed_loop import closed_loop


class Engine:
    """ends: after how many tokens a request ends, by its id."""

    def __init__(self, ends: dict[str, int]) -> None:
        self.ends = ends
        self.left: dict[str, int] = {}
        self.most = 0
        self.slot: list[Any] = []
        self.llm_engine = self.renderer = self

    def render_cmpl(self, prompts: Sequence[Any]) -> Sequence[Any]:
        return prompts

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.slot.append(params.extra_args)
        assert params.ignore_eos and prompt["prompt_token_ids"]
        self.left[request_id] = self.ends.get(request_id, params.max_tokens)
        self.most = max(self.most, len(self.left))

    def step(self) -> list[Any]:
        outputs = []
        for name in list(self.left):
            self.left[name] -= 1
            part = SimpleNamespace(token_ids=[1], finish_reason="length")
            done = not self.left[name]
            outputs.append(SimpleNamespace(request_id=name, outputs=[part], finished=done))
            if done:
                del self.left[name]
        return outputs


def loop(engine: Engine, concurrency: int) -> Any:
    prompts = [[1, 2, 3]] * 7
    return closed_loop(engine, prompts, 4, concurrency, {"slot_steps": 5})


def test_so_many_at_a_time_until_none_waits() -> None:
    engine = Engine({})
    found = loop(engine, 3)
    assert engine.most == 3 and engine.slot == [{"slot_steps": 5}] * 7
    assert [one.tokens for one in found.served] == [4] * 7
    for one in found.served:
        assert len(one.inter_token_seconds) == 3 and one.first_token_seconds > 0
        assert one.began < one.outputs[0] <= one.outputs[-1]
    assert found.seconds >= max(one.outputs[-1] for one in found.served) - found.served[0].began


def test_a_request_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="request 2 ended with 3 tokens instead of 4"):
        loop(Engine({"2": 3}), 2)
