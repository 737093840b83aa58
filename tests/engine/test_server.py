"""A real ``vllm serve --worker-extension slot_vllm``, driven by the real openai client."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from slot_vllm.engine.frontend.cached_rpc import FRESH_SECONDS
from slot_vllm.params import REQUEST_KEYS
from tests.bad_settings import BAD_SETTINGS, MAX_STEPS
from tests.conftest import ROOT, starts
from tests.engine.server import MODEL, Server, running, serving
from tests.engine.vllm_command import vllm_command

PROBLEM = (
    "Elif has 73 shells. Elif gives 47 away. Then 85 shells are added. What is the number of "
    "shells at the end? Give the answer as a number."
)


@pytest.fixture(scope="module")
@starts
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    slot = {"steps": 3, "max_steps": MAX_STEPS, "max_prompt_tokens": 200, "max_concurrent": 1}
    options: tuple[str, ...] = ("--dtype", "float32", "--max-model-len", "512")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    # A small model may write white space for ever.
    grammar = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    grammars = ("--structured-outputs-config", grammar)
    options += (*tools, *grammars)
    with serving(str(ROOT / "models/demo"), slot, log, *options, forked=False) as server:
        limits = "20 steps, max_prompt_tokens 200 (long_prompts refuse), max_concurrent 1"
        assert "SLOT 0.2.0 on the" in server.said() and limits in server.said()
        yield server
        assert server.alive(), server.said()[-3000:]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client


def _chat(client: openai.OpenAI, xargs: dict[str, Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROBLEM}],
        temperature=0,
        max_tokens=16,
        extra_body={"vllm_xargs": xargs, "ignore_eos": True},
        **options,
    )


def _complete(client: openai.OpenAI, xargs: dict[str, Any], **options: Any) -> Any:
    return client.completions.create(
        model=MODEL,
        prompt=PROBLEM,
        temperature=0,
        max_tokens=16,
        extra_body={"vllm_xargs": xargs, "ignore_eos": True},
        **options,
    )


def test_a_chat_completion_with_slot(client: openai.OpenAI) -> None:
    def said(xargs: dict[str, Any]) -> tuple[str, list[float]]:
        choice = _chat(client, xargs, logprobs=True).choices[0]
        return choice.message.content, [token.logprob for token in choice.logprobs.content]

    settings: list[dict[str, Any]] = [{"slot_steps": 0}, {}, {"slot_steps": 5, "slot_lr": 0.5}]
    own, default, strong = [said(xargs) for xargs in settings]
    assert own[0] != strong[0]
    assert max(abs(a - b) for a, b in zip(own[1], default[1], strict=True)) > 1e-3
    assert said({"slot_steps": 3}) == default
    assert said({"slot_steps": 5, "slot_lr": 0.5}) == strong


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
        ({"slot_optimizer": "sgd"}, ["slot_optimizer: removed in 0.2.0 (", "use slot_lr and slot"]),
        (
            {"slot_guard": "holdout"},
            ["slot_guard: removed in 0.2.0 (", "use fewer slot_steps or a"],
        ),
        ({"slot_preset": "safe"}, ["slot_preset=safe: removed in 0.2.0 (", "use fewer slot_steps"]),
        ({"slot": 3}, ["slot: unknown key"]),
        ({"slot_betas": [0.9]}, ["slot_betas=[0.9]", "two numbers"]),
        ({"slot_betas": [0.9, 1]}, ["slot_betas.1=1", "less than or equal to 0.9999999"]),
        ({"slot_rounding": "down"}, ["slot_rounding='down'", "'exact' or 'model'"]),
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


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
def test_a_setting_outside_of_vllm_xargs_is_400(client: openai.OpenAI, path: str) -> None:
    chat = [{"role": "user", "content": PROBLEM}]
    prompts: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": chat, "max_tokens": 4},
        "completions": {"prompt": PROBLEM, "max_tokens": 4},
        "responses": {"input": PROBLEM, "max_output_tokens": 16},
        "messages": {"messages": chat, "max_tokens": 4},
    }
    url = f"{str(client.base_url).rstrip('/')}/{path}"
    body = {"model": MODEL, **prompts[path]}
    answer = httpx.post(url, json={**body, "slot_steps": 3}, timeout=60, trust_env=False)
    assert answer.status_code == 400
    assert "slot_steps: settings of SLOT stand in vllm_xargs" in answer.text
    assert httpx.post(url, json=body, timeout=60, trust_env=False).status_code == 200


def test_scores_are_the_model_s_own(server: Server, client: openai.OpenAI) -> None:
    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{server.url}/{path}", json=body, timeout=60, trust_env=False)

    query = post("tokenize", {"model": MODEL, "prompt": PROBLEM}).json()["tokens"]
    own = client.completions.create(
        model=MODEL,
        prompt=[*query, 7],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        extra_body={"vllm_xargs": {"slot_steps": 0}, "return_tokens_as_token_ids": True},
    )
    logprobs: Any = own.choices[0].logprobs
    label = int(logprobs.tokens[0].removeprefix("token_id:"))
    body = {"model": MODEL, "query": query, "items": [[7], [9]], "label_token_ids": [label]}
    answer = post("generative_scoring", {**body, "apply_softmax": False})
    assert answer.status_code == 200, answer.text
    score = answer.json()["data"][0]["score"]
    assert math.log(score) == pytest.approx(logprobs.token_logprobs[0], abs=1e-4)
    time.sleep(FRESH_SECONDS)
    assert server.metric("vllm:slot_fallbacks_total", reason="scoring") == 2
    named: tuple[dict[str, Any], ...] = (
        {"slot_steps": 0},
        {"vllm_xargs": {"slot_lr": 0.1}},
    )
    for settings in named:
        answer = post("generative_scoring", {**body, **settings})
        assert answer.status_code == 400
        assert "this endpoint scores" in answer.text


@pytest.mark.parametrize("ask", [_chat, _complete])
@pytest.mark.parametrize("stream", [False, True])
def test_every_key_s_400_names_its_range(client: openai.OpenAI, ask: Any, stream: bool) -> None:
    assert set(BAD_SETTINGS) == set(REQUEST_KEYS)
    for key, (value, allowed) in BAD_SETTINGS.items():
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, {key: value}, stream=stream)
        assert error.value.status_code == 400
        message = error.value.body["message"]  # type: ignore[index]
        assert message.startswith(f"{key}={value!r}: ") and f"; allowed: {allowed}" in message


def test_presets_and_the_turns_of_roles(client: openai.OpenAI) -> None:
    own = _chat(client, {"slot_steps": 0}).choices[0].message.content
    strong: dict[str, Any] = {"slot_preset": "paper", "slot_lr": 1.0}
    texts = [
        _chat(client, {**strong, **more}).choices[0].message.content
        for more in ({}, {"slot_loss_tokens": ["user", "system"]}, {"slot_lr": 0.0})
    ]
    assert len(set(texts)) == 3 and texts[2] == own
    # By a word, as the server refuses JSON's null.
    whole = {**strong, "slot_window": "none", "slot_half_life": "none"}
    assert _chat(client, whole).choices[0].message.content == texts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_a_user_s_turn_is_400(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        _complete(client, {"slot_loss_tokens": "user"}, stream=stream)
    assert error.value.status_code == 400
    assert "slot_loss_tokens='user'" in error.value.message
    assert "no user turn" in error.value.message


LONG = "Seven and five. " * 32
MESSAGES = [{"role": "user", "content": LONG}]
LONG_PROMPTS: dict[str, dict[str, Any]] = {
    # The second of two prompts is too long.
    "completions": {"prompt": ["Seven", LONG], "max_tokens": 4},
    "chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "responses": {"input": LONG, "max_output_tokens": 16},
    "messages": {"messages": MESSAGES, "max_tokens": 4},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", LONG_PROMPTS)
def test_a_long_prompt_that_names_settings_is_400(server: Server, path: str, stream: bool) -> None:
    def ask(xargs: dict[str, Any], stream: bool) -> httpx.Response:
        body = {"model": MODEL, "temperature": 0, "vllm_xargs": xargs, "stream": stream}
        return httpx.post(
            f"{server.url}/v1/{path}", json=body | LONG_PROMPTS[path], timeout=120, trust_env=False
        )

    def said(xargs: dict[str, Any]) -> Any:
        answer = ask(xargs, False).json()
        if path == "responses":
            return [item["content"] for item in answer["output"]]
        return answer["content" if path == "messages" else "choices"]

    answer = ask({"slot_steps": 1}, stream)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert "slot_steps: SLOT cannot serve this request: long_prompt" in message
    assert "at most max_prompt_tokens=200" in message
    # What names nothing is served without.
    assert said({}) == said({"slot_steps": 0})


COLOUR = {"type": "string", "enum": ["red", "green"]}
OBJECT = {"type": "object", "properties": {"colour": COLOUR}, "required": ["colour"]}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": OBJECT}}
NAMED_TOOL = {"type": "function", "function": {"name": "paint"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "colour", "schema": OBJECT}}
PAINT = [{"role": "user", "content": "Paint it red."}]
# Endpoint and body; whether a strong delta shows in the answer.
ANSWERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "chat samples": ("chat", {"messages": PAINT, "n": 3, "seed": 5, "temperature": 1.0}, True),
    "samples": ("text", {"prompt": "Seven", "n": 3, "seed": 5, "temperature": 1.0}, True),
    "chat logprobs": ("chat", {"messages": PAINT, "logprobs": True, "top_logprobs": 1}, True),
    "named tool": (
        "chat",
        {"messages": PAINT, "tools": [TOOL], "tool_choice": NAMED_TOOL, "max_tokens": 64},
        False,
    ),
    "tools": ("chat", {"messages": PAINT, "tools": [TOOL], "tool_choice": "auto"}, True),
    "json_schema": (
        "chat",
        {"messages": PAINT, "response_format": SCHEMA, "max_tokens": 64},
        False,
    ),
    "choice": (
        "chat",
        {"messages": PAINT, "extra_body": {"structured_outputs": {"choice": ["red", "blue"]}}},
        False,
    ),
    "echo and logprobs": ("text", {"prompt": "Seven and five", "echo": True, "logprobs": 1}, True),
    "several prompts": ("text", {"prompt": ["Nine and four", "Seven and five"]}, True),
    "salt": ("text", {"prompt": "Seven and five", "extra_body": {"cache_salt": "mine"}}, True),
}


def _said(parts: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """By the choices' indices, what a stream's chunks, or the one whole answer, say."""
    said: dict[int, dict[str, Any]] = {}
    for part in parts:
        for choice in part.choices:
            one = said.setdefault(
                choice.index, {"text": "", "tool": "", "arguments": "", "logprobs": []}
            )
            message = getattr(choice, "delta", None) or getattr(choice, "message", None)
            one["text"] += (message.content if message else choice.text) or ""
            for call in (message and message.tool_calls) or []:
                one["tool"] += call.function.name or ""
                one["arguments"] += call.function.arguments or ""
            if choice.logprobs and message:
                one["logprobs"] += [token.logprob for token in choice.logprobs.content]
            elif choice.logprobs:
                # The first token of a prompt has none.
                one["logprobs"] += [p or 0.0 for p in choice.logprobs.token_logprobs]
    return said


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stream_says_what_the_whole_answer_does(client: openai.OpenAI, name: str) -> None:
    endpoint, options, shows = ANSWERS[name]
    completions: Any = client.chat.completions if endpoint == "chat" else client.completions

    def ask(xargs: dict[str, Any], stream: bool) -> dict[int, dict[str, Any]]:
        body = {"model": MODEL, "temperature": 0, "max_tokens": 24, **options}
        extra = {**options.get("extra_body", {}), "vllm_xargs": xargs}
        answer = completions.create(**{**body, "extra_body": extra}, stream=stream)
        return _said(answer if stream else [answer])

    # Within a grammar a model that is pushed far may never end.
    settings = {"slot_steps": 5, "slot_lr": 1.0 if shows else 0.1}
    whole, stream = ask(settings, False), ask(settings, True)
    choices = options.get("n", len(options["prompt"]) if name == "several prompts" else 1)
    assert sorted(whole) == sorted(stream) == list(range(choices))
    for index, one in whole.items():
        other = stream[index]
        assert one.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-4)
        assert one == other
    texts = [one["text"] for one in whole.values()]
    if "n" in options:
        assert len(set(texts)) > 1
    if name == "named tool":
        assert whole[0]["tool"] == "paint" and not whole[0]["text"]
        # The grammar of vLLM's parser lets a model leave the arguments out.
        allowed = (None, {"colour": "red"}, {"colour": "green"})
        assert json.loads(whole[0]["arguments"]) in allowed
    elif name == "json_schema":
        assert json.loads(texts[0])["colour"] in COLOUR["enum"]
    elif name == "choice":
        assert texts[0] in ("red", "blue")
    if shows:
        own = ask({"slot_steps": 0}, False)
        assert all(own[i]["text"] != text for i, text in enumerate(texts)), texts


def test_deltas_are_shared_within_a_cache_salt_only(server: Server) -> None:
    def count(outcome: str) -> float:
        time.sleep(FRESH_SECONDS)
        return server.metric("vllm:slot_requests_total", outcome=outcome)

    before = [count(outcome) for outcome in ("optimized", "shared")]
    for salt in ("one", "one", "two"):
        server.client.completions.create(
            model=MODEL,
            prompt="Nine and four",
            max_tokens=2,
            extra_body={"vllm_xargs": {"slot_steps": 2}, "cache_salt": salt},
        )
    after = [count(outcome) for outcome in ("optimized", "shared")]
    assert [now - was for now, was in zip(after, before, strict=True)] == [2, 1]


def test_a_batch_of_chats(server: Server, client: openai.OpenAI) -> None:
    def batch(xargs: dict[str, Any]) -> httpx.Response:
        body = {
            "model": MODEL,
            "messages": [[{"role": "user", "content": PROBLEM}], PAINT],
            "temperature": 0,
            "max_tokens": 16,
            "ignore_eos": True,
            "vllm_xargs": xargs,
        }
        url = f"{server.url}/v1/chat/completions/batch"
        return httpx.post(url, json=body, timeout=120, trust_env=False)

    for bad, part in ((True, "slot_steps=True: an integer is required"), (21, "from 0 to 20")):
        answer = batch({"slot_steps": bad})
        assert answer.status_code == 400, answer.text
        assert part in answer.json()["error"]["message"]
    strong = {"slot_steps": 5, "slot_lr": 1.0}
    for xargs in (strong, {"slot_steps": 0}):
        answer = batch(xargs)
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["choices"]
        assert first["message"]["content"] == _chat(client, xargs).choices[0].message.content
        assert second["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_beam_search_with_slot_is_400(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="beam_search"):
        client.completions.create(
            model=MODEL,
            prompt="Seven",
            max_tokens=4,
            stream=stream,
            extra_body={"use_beam_search": True, "n": 2, "vllm_xargs": {"slot_steps": 1}},
        )


def test_a_beam_search_that_names_nothing_is_served_without(client: openai.OpenAI) -> None:
    def beams(xargs: dict[str, Any]) -> list[str]:
        answer = client.completions.create(
            model=MODEL,
            prompt="Seven and five",
            max_tokens=6,
            temperature=0,
            extra_body={"use_beam_search": True, "n": 2, "vllm_xargs": xargs},
        )
        return [choice.text for choice in answer.choices]

    assert beams({}) == beams({"slot_steps": 0})


def test_several_samples_with_seeds(client: openai.OpenAI) -> None:
    def sample() -> list[str]:
        answer = client.completions.create(
            model=MODEL,
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


def test_echo_and_logprobs(client: openai.OpenAI) -> None:
    def logprobs(xargs: dict[str, Any]) -> tuple[list[float], list[float], str]:
        choice = _complete(client, xargs, echo=True, logprobs=1).choices[0]
        values = choice.logprobs.token_logprobs
        assert choice.text.startswith(PROBLEM)
        assert values[0] is None
        return values[1:-16], values[-16:], choice.text

    own_prompt, own_answer, _ = logprobs({"slot_steps": 0})
    prompt, answer, text = logprobs({"slot_steps": 5, "slot_lr": 0.5})
    # The prompt's are the model's own, the answer's those that were sampled from.
    assert prompt == pytest.approx(own_prompt, abs=1e-4)
    assert answer != pytest.approx(own_answer, abs=1e-2)
    assert text == PROBLEM + _complete(client, {"slot_steps": 5, "slot_lr": 0.5}).choices[0].text


def test_streams_beside_each_other(client: openai.OpenAI) -> None:
    settings = [{"slot_steps": n, "slot_lr": lr} for n, lr in ((0, 0.1), (5, 1.0), (5, 2.0))]
    alone = [_complete(client, xargs).choices[0].text for xargs in settings]
    assert len(set(alone)) == 3
    streams = [_complete(client, xargs, stream=True) for xargs in settings]
    texts = [""] * len(streams)
    # The server joins tokens that wait to be read, so one stream may have fewer parts than another.
    for parts in zip_longest(*streams):
        for i, part in enumerate(parts):
            texts[i] += part.choices[0].text if part else ""
    assert texts == alone


def test_the_example(tmp_path: Path) -> None:
    """With a server of its own, whose requests have no SLOT unless they ask for it."""
    options = ["--enforce-eager", "--kv-cache-memory-bytes", str(1 << 26)]
    options += ["--worker-extension", "slot_vllm", "--host", "127.0.0.1"]
    command = [*vllm_command(forked=True), "serve", str(ROOT / "models/demo"), *options]
    with running(command, tmp_path / "log") as server:
        command = [sys.executable, str(ROOT / "examples/openai_client.py"), server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        own, slot, stream, refused = done.stdout.strip().splitlines()
        assert own.startswith("{'slot_steps': 0}: Start: ")
        assert slot.partition("}: ")[2] == stream.removeprefix("stream: ")
        assert refused.startswith("refused: slot_steps=-1: ")
        assert server.metric("vllm:slot_requests_total", outcome="optimized") == 1
        assert server.metric("vllm:slot_requests_total", outcome="shared") == 1
