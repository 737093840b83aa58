"""What a client sent reaches admission, whichever way its request came."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.launchers.run_batch import BatchRequestInput
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest
from vllm.exceptions import VLLMValidationError

from slot_vllm.engine.frontend import raw_settings
from slot_vllm.engine.frontend.admission import Admission
from slot_vllm.engine.frontend.server import check_entry
from slot_vllm.params import SlotConfig
from tests.bad_settings import BAD_SETTINGS, MAX_STEPS

CHAT = [{"role": "user", "content": "One and one?"}]
MODELS: tuple[tuple[type[BaseModel], dict[str, Any]], ...] = (
    (ChatCompletionRequest, {"messages": CHAT}),
    (CompletionRequest, {"prompt": "One and one?"}),
    (ResponsesRequest, {"input": "One and one?"}),
    (AnthropicMessagesRequest, {"model": "m", "max_tokens": 4, "messages": CHAT}),
)


@pytest.fixture(autouse=True)
def kept() -> None:
    raw_settings.install()
    raw_settings.install()


def refused(request: Any) -> str:
    with pytest.raises(VLLMValidationError) as error:
        asyncio.run(check_entry(Admission(SlotConfig(max_steps=MAX_STEPS)), request, None))
    return str(error.value)


class Raw:
    """A request as it came over HTTP."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body

    async def json(self) -> dict[str, Any]:
        return self.body


def over_http(xargs: dict[str, Any]) -> str:
    raw = Raw({"vllm_xargs": xargs})
    with pytest.raises(VLLMValidationError) as error:
        asyncio.run(check_entry(Admission(SlotConfig(max_steps=MAX_STEPS)), object(), raw))
    return str(error.value)


@pytest.mark.parametrize(("model", "body"), MODELS)
@pytest.mark.parametrize(
    ("xargs", "part"),
    [
        ({"slot_steps": True}, "slot_steps=True: an integer is required"),
        ({"slot_steps": False}, "slot_steps=False: an integer is required"),
        ({"slot_steps": "5"}, "slot_steps='5': an integer is required"),
        ({"slot_steps": 5.0}, "slot_steps=5.0: an integer is required"),
        ({"slot_lr": True}, "slot_lr=True: a number is required"),
        ({"slot_lr": "0.1"}, "slot_lr='0.1': a number is required"),
        ({"slot_betas": [True, 0.9]}, "slot_betas.0=True: a number is required"),
        ({"slot_loss_tokens": True}, "slot_loss_tokens=True"),
        ({"slot_window": True}, "slot_window=True"),
    ],
)
def test_a_value_that_pydantic_would_change_is_refused_as_over_http(
    model: type[BaseModel], body: dict[str, Any], xargs: dict[str, Any], part: str
) -> None:
    by_python = model.model_validate({**body, "vllm_xargs": xargs})
    by_json = model.model_validate_json(json.dumps({**body, "vllm_xargs": xargs}))
    said = over_http(xargs)
    assert part in said
    assert refused(by_python) == refused(by_json) == said
    assert refused(model(**body, vllm_xargs=xargs)) == said


@pytest.mark.parametrize("body", [{"slot_steps": 3}, {"vllm_xargs": {"a": 1, "slot_steps": 3}}])
def test_tokens_in_and_out_take_settings_in_their_sampling_parameters(body: dict[str, Any]) -> None:
    """``/inference/v1/generate``."""
    sampling = {"max_tokens": 1, "extra_args": {"slot_steps": 3}}
    sent = {"token_ids": [1, 2], "sampling_params": sampling}
    request = GenerateRequest.model_validate(sent)
    assert request.sampling_params.extra_args == {"slot_steps": 3}
    asyncio.run(check_entry(Admission(SlotConfig()), request, Raw(sent)))
    with pytest.raises(VLLMValidationError) as error:
        asyncio.run(check_entry(Admission(SlotConfig()), request, Raw({**sent, **body})))
    assert str(error.value) == (
        "slot_steps: settings of SLOT stand in sampling_params.extra_args, not beside it"
    )


def test_sampling_parameters_elsewhere_change_nothing() -> None:
    """A chat's body may hold anything beside what vLLM knows."""
    sent = {"messages": CHAT, "sampling_params": {}, "vllm_xargs": {"slot_steps": True}}
    request = ChatCompletionRequest.model_validate(sent)
    with pytest.raises(VLLMValidationError, match="slot_steps=True: an integer is required"):
        asyncio.run(check_entry(Admission(SlotConfig()), request, Raw(sent)))


def test_a_protocol_that_takes_no_xargs() -> None:
    """Such as Cohere's, whose requests are turned into chat completions."""
    request = ChatCompletionRequest(messages=CHAT)
    for xargs in ({}, {"other": 1}):
        raw = Raw({"messages": CHAT, "vllm_xargs": xargs})
        asyncio.run(check_entry(Admission(SlotConfig()), request, raw))
    raw = Raw({"messages": CHAT, "vllm_xargs": {"other": 1, "slot_lr": 0.1}})
    with pytest.raises(VLLMValidationError, match=r"^slot_lr: this endpoint takes no vllm_xargs"):
        asyncio.run(check_entry(Admission(SlotConfig()), request, raw))


def test_a_line_of_run_batch() -> None:
    body = {"messages": CHAT, "vllm_xargs": {"slot_steps": True}}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    request = BatchRequestInput.model_validate_json(json.dumps(line))
    assert "slot_steps=True: an integer is required" in refused(request.body)


@pytest.mark.parametrize(("model", "body"), MODELS)
def test_every_bad_setting_is_refused(model: type[BaseModel], body: dict[str, Any]) -> None:
    for key, (value, allowed) in BAD_SETTINGS.items():
        try:
            request = model.model_validate({**body, "vllm_xargs": {key: value}})
        except ValidationError:
            continue
        assert allowed in refused(request)


@pytest.mark.parametrize(("model", "body"), MODELS)
def test_the_rest_is_as_vllm_reads_it(model: type[BaseModel], body: dict[str, Any]) -> None:
    xargs = {"slot_steps": 3, "slot_betas": [0.9, 0.99], "other": True, "text": "a"}
    request: Any = model.model_validate({**body, "vllm_xargs": xargs})
    assert request.vllm_xargs == {**xargs, "other": 1}
    assert request.vllm_xargs["other"] is not True
    assert model.model_validate(body).model_dump()["vllm_xargs"] is None
    dumped = request.model_dump(exclude_unset=True)
    assert model.model_validate(dumped).model_dump()["vllm_xargs"] == request.vllm_xargs
    with pytest.raises(ValidationError):
        model.model_validate({**body, "vllm_xargs": {"slot_steps": {}}})
