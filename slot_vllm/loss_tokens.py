"""Which tokens of a prompt ``slot_loss_tokens`` means, where only the tokenizer can tell.

``text``: all but special tokens. ``user``: the last user turn of the tokenizer's chat template,
without what the template puts around it. How the template marks a turn is found by rendering some
chats: what always stands before a user's message, and what always stands after it.
"""

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_MESSAGE, _OTHER = "SLOTMESSAGE", "SLOTOTHER"
_USER = {"role": "user", "content": _MESSAGE}
_ANSWER = {"role": "assistant", "content": _OTHER}
_CHATS: tuple[list[dict[str, str]], ...] = (
    [_USER],
    [{"role": "system", "content": _OTHER}, _USER],
    [{"role": "user", "content": _OTHER}, _ANSWER, _USER],
    [_USER, _ANSWER],
)

# First and last token + 1 of what counts.
Span = tuple[int, int]


class UndeterminedError(ValueError):
    """It cannot be said which tokens count; the message says why."""


class LossTokens:
    """tokenizer: of transformers, or None where an engine has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def spans(self, tokens: Sequence[int], wanted: str) -> list[Span]:
        """Where the tokens that count stand. wanted: ``text`` or ``user``. Raises
        UndeterminedError."""
        if self._tokenizer is None:
            raise UndeterminedError("the engine has no tokenizer (skip_tokenizer_init)")
        if wanted == "user":
            return [self._last_user_turn(list(tokens))]
        spans: list[Span] = []
        for i, token in enumerate(tokens):
            if token in self._special:
                continue
            if spans and spans[-1][1] == i:
                spans[-1] = (spans[-1][0], i + 1)
            else:
                spans.append((i, i + 1))
        return spans

    @cached_property
    def _special(self) -> set[int]:
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        # Those that have no name of their own, such as a template's role marks, are only there.
        marks = {token for token, text in added.items() if getattr(text, "special", False)}
        return marks | set(self._tokenizer.all_special_ids)

    def _last_user_turn(self, tokens: list[int]) -> Span:
        before, gap, after = self._marks
        start = _last(tokens, before)
        if start is None:
            raise UndeterminedError("the prompt has no user turn of the model's chat template")
        start += len(before)
        if gap and tokens[start : start + len(gap)] == gap:
            start += len(gap)
        stop = _first(tokens, after, start) if after else None
        return start, len(tokens) if stop is None else stop

    @cached_property
    def _marks(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens before a user's message, white space after them, and tokens after the message."""
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise UndeterminedError("the model has no chat template")
        befores, afters = [], []
        for chat in _CHATS:
            try:
                text = self._tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=chat[-1] is _USER
                )
            except Exception:
                # A template may refuse a chat, such as one with a system message.
                continue
            before, found, after = str(text).rpartition(_MESSAGE)
            if found:
                befores.append(before)
                afters.append(after.partition(_OTHER)[0])
        before = _common_start([text[::-1] for text in befores])[::-1]
        after = _common_start(afters)
        marks = (before.strip(), before[len(before.rstrip()) :], after.strip())
        tokens = [self._tokenizer.encode(mark, add_special_tokens=False) for mark in marks]
        if not tokens[0]:
            raise UndeterminedError("the model's chat template does not mark user turns")
        return tokens[0], tokens[1], tokens[2]


def _common_start(texts: Sequence[str]) -> str:
    """Of characters."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return "".join(column[0] for column in same)


def flags(spans: Sequence[Sequence[int]], length: int) -> list[bool]:
    """One per token, whether a span has it."""
    counts = [False] * length
    for start, stop in spans:
        counts[start:stop] = [True] * (stop - start)
    return counts


def _last(tokens: list[int], wanted: list[int]) -> int | None:
    for i in range(len(tokens) - len(wanted), -1, -1):
        if tokens[i : i + len(wanted)] == wanted:
            return i
    return None


def _first(tokens: list[int], wanted: list[int], start: int) -> int | None:
    for i in range(start, len(tokens) - len(wanted) + 1):
        if tokens[i : i + len(wanted)] == wanted:
            return i
    return None
