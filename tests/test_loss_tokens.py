"""Which tokens of a rendered chat count."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from slot_vllm.chat_turns import UndeterminedError
from slot_vllm.loss_tokens import LossTokens, flags

CHAT = (("system", "Be kind."), ("user", "old"), ("assistant", "answer"), ("user", "question"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def rendered(tokenizer: Any, *messages: tuple[str, str]) -> list[int]:
    chat = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return tokens


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("system", ["Be kind."]),
        ("user", ["old", "question"]),
        ("assistant", ["answer"]),
        (("assistant", "system"), ["Be kind.", "answer"]),
    ],
)
def test_the_turns_of_roles(wanted: Any, said: list[str], tokenizer: Any) -> None:
    tokens = rendered(tokenizer, *CHAT)
    spans = LossTokens(tokenizer).spans(tokens, wanted)
    assert [tokenizer.decode(tokens[start:stop]) for start, stop in spans] == said


def test_a_token_that_is_in_part_a_role_s_counts(tokenizer: Any) -> None:
    text = "<|user|>\n\nhi<|end|>"
    places = [(0, 8), (8, 10), (10, 11), (11, 12), (12, 19)]

    class Merging:
        """Of which the mark's line end and the message's are one token."""

        is_fast = True
        chat_template = (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>{% endfor %}"
        )
        apply_chat_template = None

        def decode(self, tokens: Any, **options: Any) -> str:
            return text

        def __call__(self, text: str, **options: Any) -> Any:
            return {"input_ids": [0, 1, 2, 3, 4], "offset_mapping": places}

    merging = Merging()
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = merging.chat_template
    merging.apply_chat_template = bare.apply_chat_template
    assert LossTokens(merging).spans([0, 1, 2, 3, 4], "user") == [(1, 4)]
    with pytest.raises(UndeterminedError, match="tokens are not those of its text"):
        LossTokens(merging).spans([0, 1, 2, 2, 3, 4], "user")
    merging.is_fast = False
    with pytest.raises(UndeterminedError, match="does not say where a token stands"):
        LossTokens(merging).spans([0, 1, 2, 3, 4], "user")


def test_all_but_special_tokens(tokenizer: Any) -> None:
    tokens = rendered(tokenizer, ("system", "S"), ("user", "ab"))
    counts = flags(LossTokens(tokenizer).spans(tokens, "text"), len(tokens))
    kept = [token for token, counted in zip(tokens, counts, strict=True) if counted]
    # Role marks are special too, though the tokenizer has no name for them.
    assert tokenizer.decode(kept) == "Sab" and len(kept) == 3


def test_what_cannot_be_told(tokenizer: Any) -> None:
    with pytest.raises(UndeterminedError, match="no tokenizer"):
        LossTokens(None).spans([1, 2], "text")
    with pytest.raises(UndeterminedError, match="no user turn"):
        LossTokens(tokenizer).spans(tokenizer.encode("plain text"), "user")
