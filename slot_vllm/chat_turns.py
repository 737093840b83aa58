"""Whose words stand where in a rendered chat.

How the tokenizer's chat template marks turns is found by rendering a few chats whose messages are
known: what always stands before a message of each role, and what after it.
"""

import itertools
import re
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
# Two marks that begin or end alike are one as far as they do; fewer characters may be chance.
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
    """role_of: by what stands before a message, whose it is. after: by role, what stands after its
    messages, where anything does. prompt: what ends a chat that the model is to go on with.

    untold: by role, why its turns cannot be told.
    """

    role_of: dict[str, str]
    after: dict[str, re.Pattern[str]]
    prompt: str
    untold: dict[str, str]


class ChatTurns:
    """tokenizer: of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rendered: tuple[date, _Marks] | None = None

    def of(self, text: str, roles: Sequence[str]) -> list[Turn]:
        """The turns of these roles, in order, with what the template itself puts into them, such as
        a list of tools. An assistant's turn at the end that goes on is what the model is to write:
        it is none. Raises UndeterminedError where a role cannot be told, or none has a turn."""
        marks = self._marks
        for role in roles:
            if role in marks.untold:
                raise UndeterminedError(f"the model's chat template {marks.untold[role]}")
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
        untold: dict[str, str] = {}
        for roles in _CHATS:
            gaps = self._gaps(roles)
            if gaps is None:
                continue
            for i, role in enumerate(roles):
                if i > 0 and not gaps[i].strip():
                    pair = (roles[i - 1], role)
                    if pair == ("system", "user"):
                        untold["system"] = "puts a system message into the user's turn"
                    elif role == "system":
                        untold[roles[i - 1]] = f"does not mark where {roles[i - 1]} turns end"
                else:
                    before[role].append(gaps[i])
                if gaps[i + 1]:
                    after[role].append(gaps[i + 1])
        if "system" in untold:
            before.pop("system", None)
        ends = _shortest({role: _alike_from(texts) for role, texts in after.items()})
        headers: dict[str, set[str]] = {}
        for role, texts in before.items():
            cores = {_core(text[::-1], ends) for text in _alike_from([t[::-1] for t in texts])}
            headers[role] = {core for core in cores if not _holds_another(core, cores)} - {""}
        for role in ROLES:
            others = [texts for other, texts in headers.items() if other != role]
            if not headers.get(role) or headers[role] & set().union(*others):
                untold.setdefault(role, f"does not mark {role} turns")
        known = {header: role for role, texts in headers.items() for header in texts}
        after_marks = {role: _any_of(texts) for role, texts in ends.items() if texts}
        return _Marks(known, after_marks, self._prompt(), untold)

    def _prompt(self) -> str:
        chat = [_message("user", "message")]
        try:
            ended, goes_on = (
                str(self._tokenizer.apply_chat_template(chat, tokenize=False, **options))
                for options in ({}, {"add_generation_prompt": True})
            )
        except Exception:  # whatever a template raises at a chat that it does not allow
            return ""
        return goes_on.removeprefix(ended).strip() if goes_on.startswith(ended) else ""

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
            asked = {"id": "call00001", "type": "function", "function": call}
            asks = {"role": "assistant", "content": "", "tool_calls": [asked]}
            messages.insert(roles.index(_TOOL), asks)
        try:
            text = str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception:  # as above
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
    if not marks.role_of:
        return
    headers = _any_of(marks.role_of)
    length = len(text)
    if marks.prompt and text.rstrip().endswith(marks.prompt):
        length = text.rindex(marks.prompt)
    header = headers.search(text, 0, length)
    while header is not None:
        role, start = marks.role_of[header[0]], header.end()
        ends = marks.after.get(role)
        end = ends.search(text, start) if ends else None
        header = headers.search(text, start, length)
        if end is not None and (header is None or end.start() <= header.start()):
            header = headers.search(text, end.start(), length)
            yield Turn(role, start, end.start())
        elif header is not None or role != "assistant":
            stop = length if header is None else header.start()
            yield Turn(role, start, start + len(text[start:stop].rstrip()))


def _any_of(texts: Sequence[str] | dict[str, str]) -> re.Pattern[str]:
    """The first of them in a text, and of several there the longest."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _shortest(ends: dict[str, list[str]]) -> dict[str, list[str]]:
    """Where always the same follows a role's turns, its end goes on into that."""
    stripped = {role: [end.rstrip() for end in texts] for role, texts in ends.items()}
    known = sorted({end for texts in stripped.values() for end in texts if end}, key=len)
    return {
        role: [next(k for k in known if end.startswith(k)) for end in texts if end]
        # Where nothing marks some of its ends, the next turn does.
        if all(texts)
        else []
        for role, texts in stripped.items()
    }


def _core(header: str, ends: dict[str, list[str]]) -> str:
    """Without what ends the turn before it, where that leaves a mark."""
    for end in itertools.chain(*ends.values()):
        rest = header.rpartition(end)[2]
        if rest.strip():
            header = rest
    return header.lstrip() if header.strip() else ""


def _holds_another(header: str, headers: set[str]) -> bool:
    """A shorter one, and then what a template puts into some of a role's turns."""
    return any(other != header and other and other in header for other in headers)


def _alike_from(texts: Sequence[str]) -> list[str]:
    """What they begin with, as few as possible."""
    found: list[str] = []
    for text in texts:
        for i, known in enumerate(found):
            pairs = zip(text, known, strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            if same == len(text) or same == len(known) or len(text[:same].strip()) >= _ALIKE:
                found[i] = text[:same]
                break
        else:
            found.append(text)
    return found
