"""Whose words stand where in a rendered chat.

How the tokenizer's chat template marks turns is found by rendering a few chats whose messages are
known: what always stands before a message of each role, and what after it.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

ROLES = ("system", "user", "assistant")
# A model calls this role's answers its tools'. Some templates render them in a user's turn.
_TOOL = "tool"
_CHATS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant"),
    ("user", "system"),
    ("user", "assistant", "system", "user"),
    ("user", _TOOL, "assistant"),
    ("user", _TOOL, "assistant", "user"),
)
# Two marks that end alike are one from here; fewer characters may be alike by chance.
_ALIKE = 4


class UndeterminedError(ValueError):
    """It cannot be said which tokens count; the message says why."""


@dataclass(frozen=True)
class Turn:
    """start, stop: its words, as characters of the text."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Marks:
    """By role: the texts, one of which stands before a message, and the one that stands after it,
    where there is one.

    system_in_user: whether a system message stands in the next user's turn.
    """

    before: dict[str, list[str]]
    after: dict[str, str]
    system_in_user: bool


class ChatTurns:
    """tokenizer: of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rendered: tuple[date, _Marks] | None = None

    def of(self, text: str, roles: Sequence[str]) -> list[Turn]:
        """The turns of these roles, with what the template itself puts into them, such as a list of
        tools. An assistant's turn at the end that goes on is what the model is to write: it is
        none. Raises UndeterminedError where a role cannot be told, or none has a turn."""
        marks = self._marks
        for role in roles:
            if role == "system" and marks.system_in_user:
                raise UndeterminedError(
                    "the model's chat template puts a system message into the user's turn"
                )
            if not marks.before.get(role):
                raise UndeterminedError(f"the model's chat template does not mark {role} turns")
        turns = [turn for turn in _turns(text, marks) if turn.role in roles]
        turns = [turn for turn in turns if turn.stop > turn.start]
        if not turns:
            named = " or ".join(roles)
            raise UndeterminedError(f"the prompt has no {named} turn of the model's chat template")
        return turns

    @property
    def _marks(self) -> _Marks:
        """A template may write the day."""
        today = date.today()
        if self._rendered is None or self._rendered[0] != today:
            self._rendered = today, self._render()
        return self._rendered[1]

    def _render(self) -> _Marks:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise UndeterminedError("the model has no chat template")
        before, after = defaultdict(list), defaultdict(list)
        system_in_user = False
        for roles in _CHATS:
            gaps = self._gaps(roles)
            if gaps is None:
                continue
            for i, role in enumerate(roles):
                if i > 0 and not gaps[i].strip():
                    system_in_user |= roles[i - 1] == "system"
                else:
                    before[role].append(gaps[i])
                if gaps[i + 1]:
                    after[role].append(gaps[i + 1])
        if system_in_user:
            before.pop("system", None)
        ends = _shortest({role: _common_start(texts).rstrip() for role, texts in after.items()})
        headers = {
            role: sorted({_core(text, ends) for text in _alike(texts)} - {""}, key=len)
            for role, texts in before.items()
        }
        return _Marks(headers, ends, system_in_user)

    def _gaps(self, roles: Sequence[str]) -> list[str] | None:
        """What the template writes before, between and after messages of these roles; None where
        it refuses them, or leaves one out."""
        # They begin and end differently, so that marks end where they do.
        contents = [
            f"{letter}{i}message{i}{letter}" for i, letter in enumerate("kvzqx"[: len(roles)])
        ]
        messages = [_message(*pair) for pair in zip(roles, contents, strict=True)]
        if _TOOL in roles:
            call = {"name": "look", "arguments": {"at": "it"}}
            asks = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call00001", "type": "function", "function": call}],
            }
            messages.insert(roles.index(_TOOL), asks)
        try:
            text = str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # whatever a template raises at a chat that it does not allow
            return None
        gaps = []
        for content in contents:
            gap, found, text = text.partition(content)
            if not found:
                return None
            gaps.append(gap)
        return [*gaps, text]


def _message(role: str, content: str) -> dict[str, Any]:
    names = {"tool_call_id": "call00001", "name": "look"} if role == _TOOL else {}
    return {"role": role, "content": content, **names}


def _turns(text: str, marks: _Marks) -> Iterator[Turn]:
    headers = [(header, role) for role, texts in marks.before.items() for header in texts]

    def next_header(position: int) -> tuple[int, str, str] | None:
        found = [(text.find(header, position), header, role) for header, role in headers]
        # The first, and of several there the longest.
        return min(
            (one for one in found if one[0] >= 0),
            key=lambda one: (one[0], -len(one[1])),
            default=None,
        )

    header = next_header(0)
    while header is not None:
        at, mark, role = header
        start = at + len(mark)
        end = text.find(marks.after[role], start) if marks.after.get(role) else -1
        header = next_header(start if end < 0 else end)
        if end >= 0:
            yield Turn(role, start, end)
        elif header is not None or role != "assistant":
            stop = len(text) if header is None else header[0]
            yield Turn(role, start, start + len(text[start:stop].rstrip()))


def _shortest(ends: dict[str, str]) -> dict[str, str]:
    """Where always the same follows a role's turns, its end goes on into that."""
    known = sorted(filter(None, ends.values()), key=len)
    return {role: next((k for k in known if end.startswith(k)), end) for role, end in ends.items()}


def _core(header: str, ends: dict[str, str]) -> str:
    """Without what ends the turn before it, where that leaves a mark."""
    for end in filter(None, ends.values()):
        rest = header.rpartition(end)[2]
        if rest.strip():
            header = rest
    return header.lstrip() if header.strip() else ""


def _alike(texts: Sequence[str]) -> list[str]:
    """What they end with, as few as possible."""
    found: list[str] = []
    for text in texts:
        for i, known in enumerate(found):
            same = _common_start([text[::-1], known[::-1]])[::-1]
            if len(same.strip()) >= _ALIKE:
                found[i] = same
                break
        else:
            found.append(text)
    return found


def _common_start(texts: Sequence[str]) -> str:
    """Of characters."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))
    return "".join(column[0] for column in same)
