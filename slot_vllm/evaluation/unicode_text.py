"""Texts that are none: what UTF-8 cannot hold, and what nobody can see."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from slot_vllm.evaluation.errors import ConfigError

# Separators, control characters and format characters such as a zero-width space.
_INVISIBLE = {"Zs", "Zl", "Zp", "Cc", "Cf"}


def fault(value: Any) -> str | None:
    """Where a text, or one within lists and objects, cannot be encoded: half a surrogate pair."""
    for text in inside(value):
        if not isinstance(text, str):
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return (
                f"its character {error.start + 1} cannot be encoded: {error.reason} "
                f"(U+{ord(text[error.start]):04X}, half of a character)"
            )
    return None


def check(where: str, value: Any) -> None:
    """Raises ConfigError, which begins with ``where``, for what ``fault`` finds."""
    found = fault(value)
    if found is not None:
        raise ConfigError(f"{where}: {found}")


def encoded(text: str) -> str:
    """With a question mark for half a surrogate pair, which has no UTF-8 form; an answer may hold
    one."""
    return text.encode("utf-8", "replace").decode("utf-8")


def blank(text: str) -> bool:
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def inside(value: Any) -> Iterator[Any]:
    """A value, or what its lists and objects hold, names included."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from inside(inner)
    else:
        yield value
