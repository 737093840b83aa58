"""Which tokens of a rendered chat count."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from slot_vllm.loss_tokens import LossTokens, UndeterminedError, flags

# The ways in which popular templates mark turns.
TEMPLATES = {
    "own": None,
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<|system|>Be kind.<|end|>\n{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "brackets": (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system message') }}{% elif m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|end|>{% endif %}"
        "{% endfor %}"
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(params=list(TEMPLATES))
def templated(request: pytest.FixtureRequest, tiny_model: str) -> Any:
    loaded = AutoTokenizer.from_pretrained(tiny_model)
    if TEMPLATES[request.param] is not None:
        loaded.chat_template = TEMPLATES[request.param]
    return loaded


def rendered(tokenizer: Any, *messages: tuple[str, str], ends: bool = True) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ends)
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


def test_the_last_user_turn(templated: Any) -> None:
    chats = [
        [("user", "first question")],
        [("user", "old"), ("assistant", "answer"), ("user", "first question")],
    ]
    if templated.chat_template != TEMPLATES["brackets"]:
        chats.append([("system", "Be brief."), ("user", "first question")])
    spans = LossTokens(templated)
    for chat in chats:
        tokens = rendered(templated, *chat)
        ((start, stop),) = spans.spans(tokens, "user")
        assert templated.decode(tokens[start:stop]).strip() == "first question", chat


def test_all_but_special_tokens(tokenizer: Any) -> None:
    tokens = rendered(tokenizer, ("system", "S"), ("user", "ab"))
    counts = flags(LossTokens(tokenizer).spans(tokens, "text"), len(tokens))
    kept = [token for token, counted in zip(tokens, counts, strict=True) if counted]
    # Role marks are special too, though the tokenizer has no name for them.
    assert tokenizer.decode(kept) == "Sab" and len(kept) == 3


def test_what_cannot_be_told(tokenizer: Any, tiny_model: str) -> None:
    with pytest.raises(UndeterminedError, match="no tokenizer"):
        LossTokens(None).spans([1, 2], "text")
    with pytest.raises(UndeterminedError, match="no user turn"):
        LossTokens(tokenizer).spans(tokenizer.encode("plain text"), "user")
    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.chat_template = None
    with pytest.raises(UndeterminedError, match="no chat template"):
        LossTokens(bare).spans([1, 2], "user")
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UndeterminedError, match="does not mark user turns"):
        LossTokens(bare).spans([1, 2], "user")
