"""A real ``vllm serve --worker-extension slot_vllm``, driven by the real openai client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine.server import serving


@pytest.fixture(scope="module")
def client(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    log = tmp_path_factory.mktemp("server") / "log"
    slot = {"steps": 3, "max_steps": 20}
    options = ("--dtype", "float32", "--max-model-len", "512")
    with serving(tiny_model, slot, log, *options) as server:
        assert "SLOT 0.1.0 on the" in server.said()
        yield server.client
        assert server.alive(), server.said()[-3000:]


def _chat(client: openai.OpenAI, xargs: dict[str, Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Say something about the number seven."}],
        temperature=0,
        max_tokens=16,
        extra_body={"vllm_xargs": xargs, "ignore_eos": True},
        **options,
    )


def _complete(client: openai.OpenAI, xargs: dict[str, Any], **options: Any) -> Any:
    return client.completions.create(
        model="tiny",
        prompt="Say something about the number seven.",
        temperature=0,
        max_tokens=16,
        extra_body={"vllm_xargs": xargs, "ignore_eos": True},
        **options,
    )


def test_a_chat_completion_with_slot(client: openai.OpenAI) -> None:
    own = _chat(client, {"slot_steps": 0}).choices[0].message.content
    slot = _chat(client, {"slot_steps": 3, "slot_lr": 0.5}).choices[0].message.content
    default = _chat(client, {}).choices[0].message.content
    assert len({own, slot, default}) == 3
    assert _chat(client, {"slot_steps": 3}).choices[0].message.content == default
    again = _chat(client, {"slot_steps": 3, "slot_lr": 0.5}).choices[0].message.content
    assert again == slot


@pytest.mark.parametrize("ask", [_chat, _complete])
def test_streaming_gives_the_same_text(client: openai.OpenAI, ask: Any) -> None:
    xargs = {"slot_steps": 3}
    whole = ask(client, xargs).choices[0]
    parts = []
    for chunk in ask(client, xargs, stream=True):
        choice = chunk.choices[0]
        parts.append(choice.text if ask is _complete else choice.delta.content)
    assert "".join(p or "" for p in parts) == (
        whole.text if ask is _complete else whole.message.content
    )


@pytest.mark.parametrize("ask", [_chat, _complete])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("xargs", "parts"),
    [
        ({"slot_steps": -1}, ["slot_steps=-1", "greater than or equal to 0"]),
        ({"slot_steps": True}, ["slot_steps=True", "an integer is required"]),
        ({"slot_steps": 21}, ["slot_steps=21", "0 to 20"]),
        ({"slot_lr": "x"}, ["slot_lr='x'", "a number is required"]),
        ({"slot_step": 3}, ["slot_step: unknown key", "slot_steps"]),
        ({"slot": 3}, ["slot: unknown key"]),
    ],
)
def test_bad_settings_are_400(
    client: openai.OpenAI, ask: Any, stream: bool, xargs: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, xargs, stream=stream)
    assert error.value.status_code == 400
    for part in parts:
        assert part in error.value.message


def test_presets_and_the_user_s_turn(client: openai.OpenAI) -> None:
    own = _chat(client, {"slot_steps": 0}).choices[0].message.content
    strong: dict[str, Any] = {"slot_preset": "paper", "slot_lr": 1.0}
    texts = [
        _chat(client, {**strong, **more}).choices[0].message.content
        for more in ({}, {"slot_loss_tokens": "user"}, {"slot_max_kl": 0.0})
    ]
    assert len(set(texts)) == 3 and texts[2] == own
    # An engine's or a preset's bound is turned off by a word: JSON's null is refused by the server.
    free = {"slot_preset": "safe", "slot_lr": 1.0, "slot_max_kl": "none", "slot_guard": "none"}
    assert _chat(client, free).choices[0].message.content == texts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_a_user_s_turn_is_400(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        _complete(client, {"slot_loss_tokens": "user"}, stream=stream)
    assert error.value.status_code == 400
    assert "slot_loss_tokens='user'" in error.value.message
    assert "no user turn" in error.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_beam_search_with_slot_is_400(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="beam_search"):
        client.completions.create(
            model="tiny",
            prompt="Seven",
            max_tokens=4,
            stream=stream,
            extra_body={"use_beam_search": True, "n": 2, "vllm_xargs": {"slot_steps": 1}},
        )


def test_a_beam_search_that_names_nothing_is_served_without(client: openai.OpenAI) -> None:
    def beams(xargs: dict[str, Any]) -> list[str]:
        answer = client.completions.create(
            model="tiny",
            prompt="Seven and five",
            max_tokens=6,
            temperature=0,
            extra_body={"use_beam_search": True, "n": 2, "vllm_xargs": xargs},
        )
        return [choice.text for choice in answer.choices]

    assert beams({}) == beams({"slot_steps": 0})


def test_structured_output_holds_under_a_strong_delta(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Which colour?"}],
        temperature=0,
        max_tokens=16,
        extra_body={
            "vllm_xargs": {"slot_steps": 5, "slot_lr": 1.0},
            "structured_outputs": {"choice": ["red", "green", "blue"]},
        },
    )
    assert answer.choices[0].message.content in ("red", "green", "blue")


def test_several_samples_with_seeds(client: openai.OpenAI) -> None:
    def sample() -> list[str]:
        answer = client.completions.create(
            model="tiny",
            prompt="Seven",
            n=3,
            seed=5,
            temperature=1.0,
            max_tokens=12,
            extra_body={"vllm_xargs": {"slot_steps": 3}},
        )
        return [choice.text for choice in answer.choices]

    first = sample()
    assert len(set(first)) > 1
    assert sample() == first
