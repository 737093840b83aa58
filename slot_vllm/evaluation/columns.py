"""The columns that tasks read from local data, under the names that people give them."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from slot_vllm.evaluation import unicode_text
from slot_vllm.evaluation.data_files import Item, Row
from slot_vllm.evaluation.errors import ConfigError

# A problem's own id, by which answers from elsewhere name it.
IDS = ("id", "unique_id", "key", "record_id", "problem_id", "question_id")
# Columns by which a task's results are split.
GROUPS = ("level", "subject", "group", "subset", "format")


@dataclass(frozen=True)
class Column:
    """One that a task's prompt function reads, by its name there.

    others: names that are as good, the best first. Case, spaces and underscores do not count.
    boxed: names of a bare answer, which serves as ``$\\boxed{answer}$``. kind: ``text``; ``list``
    stays as it is.
    """

    name: str
    others: tuple[str, ...] = ()
    boxed: tuple[str, ...] = ()
    kind: str = "text"


_PROBLEM = Column("problem", ("question", "prompt"))
_QUESTION = Column("question", ("problem", "prompt"))
_ANSWER = Column("answer", ("final_answer", "gold", "target", "solution"))
_SOLUTION = Column("solution", boxed=("answer", "final_answer", "gold", "target"))
_AIME = [f"{task}{kind}" for task in ("aime24", "aime25") for kind in ("", "_gpassk")]

# A text is taken as text: an answer `204` in a JSON file is the string "204" that metrics expect.
COLUMNS: dict[str, tuple[Column, ...]] = {
    **dict.fromkeys([*_AIME, "published:aime24", "published:aime25"], (_PROBLEM, _ANSWER)),
    **dict.fromkeys(["math_500", "published:math_500"], (_PROBLEM, _SOLUTION)),
    "published:gsm8k": (_QUESTION, _ANSWER),
    # lighteval's scorer wants a worked answer: a file of problems with bare ones is another's.
    "gsm8k": (Column("question"), Column("answer")),
    **dict.fromkeys(
        ["gpqa:diamond", "gpqa:main", "gpqa:extended", "published:gpqa:diamond"],
        (
            Column("Question", ("problem", "prompt")),
            Column("Correct Answer"),
            *(Column(f"Incorrect Answer {i}") for i in (1, 2, 3)),
        ),
    ),
    "ifeval": (
        Column("prompt"),
        Column("instruction_id_list", kind="list"),
        Column("kwargs", kind="list"),
    ),
    "ceval": (_QUESTION, *(Column(letter) for letter in "ABCD"), Column("answer")),
}


def of(task: str) -> tuple[Column, ...]:
    """What a task reads; nothing for tasks whose columns only lighteval knows."""
    return COLUMNS.get(task) or COLUMNS.get(task.split(":")[0], ())


def checked(items: Iterable[Item], columns: Sequence[Column]) -> list[Row]:
    """The rows, with each column under the task's own name. Raises ConfigError for a cell that is
    missing, blank, no text or not to be encoded."""
    return [_row(item.place, item.row, columns) for item in items]


def own_id(row: Mapping[str, Any]) -> str | None:
    """What the data calls a problem; None if it does not say."""
    name = _find(row, IDS)
    return None if name is None else group(row, name)


def group(row: Mapping[str, Any], column: str) -> str | None:
    """A problem's group; None where the cell is missing or blank."""
    value = row.get(column)
    return None if _is_blank(value) else _as_text(value)


def _row(place: str, row: Row, columns: Sequence[Column]) -> Row:
    known = {column.name: _cell(place, row, column, columns) for column in columns}
    groups = {name: found for name in GROUPS if (found := _find(row, (name,), place))}
    ids = [found for name in IDS if (found := _find(row, (name,), place))]
    for name in [*groups.values(), *ids] if columns else row:
        unicode_text.check(f"{place}: {name}", row[name])
    if ids:
        own = row[ids[0]]
        if _is_nan(own) or not _is_scalar(own):
            raise ConfigError(f"{place}: {ids[0]}={own!r}: an id is a text or a number")
    for found in groups.values():
        allowed = f"a text or a number is required, or a row without {found!r}"
        if _is_blank(row[found]):
            raise ConfigError(f"{place}: {found}: the cell is blank; {allowed}")
        if not _is_scalar(row[found]):
            raise ConfigError(f"{place}: {found}={row[found]!r}: {allowed}")
    others = {name: row[found] for name, found in groups.items() if name not in row}
    return {**row, **others, **known}


def _cell(place: str, row: Row, column: Column, columns: Sequence[Column]) -> Any:
    name = _find(row, (column.name, *column.others), place)
    bare = None if name else _find(row, column.boxed, place)
    found = name or bare
    if found is None:
        raise ConfigError(
            f"{place}: no {column.name!r}; required: {', '.join(c.name for c in columns)}; "
            f"it has: {', '.join(map(str, row))}"
        )
    value = row[found]
    if _is_blank(value):
        raise ConfigError(f"{place}: {found}: the cell is blank; a text is required")
    if column.kind == "list":
        return _list(place, found, value)
    if not _is_scalar(value):
        raise ConfigError(f"{place}: {found}={value!r}: a text is required")
    text = _as_text(value)
    unicode_text.check(f"{place}: {found}", text)
    return f"$\\boxed{{{text}}}$" if bare else text


def _list(place: str, name: str, value: Any) -> list[Any]:
    if isinstance(value, str):  # of a csv
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list):
        raise ConfigError(f"{place}: {name}: a list is required")
    unicode_text.check(f"{place}: {name}", value)
    if any(_is_nan(inner) for inner in unicode_text.inside(value)):
        raise ConfigError(f"{place}: {name}: the list holds NaN or infinity")
    return value


def _find(row: Mapping[str, Any], names: Iterable[str], place: str = "") -> str | None:
    """The row's column of the first of these names; one spelled just so comes first. Raises
    ConfigError where two are spelled so but for case, spaces and the like."""
    for name in names:
        if name in row:
            return name
        found = [key for key in row if _plain(key) == _plain(name)]
        if len(found) > 1:
            raise ConfigError(
                f"{place}: two columns are named {found[0]!r}, but for case and spaces "
                f"({', '.join(found)}); allowed: one, or one named {name!r}"
            )
        if found:
            return found[0]
    return None


def _plain(name: object) -> str:
    return re.sub(r"[\s_-]+", "", str(name)).casefold()


def _as_text(value: Any) -> str:
    """Tables of numbers hold whole ones with a point: 204.0 is 204."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite():
        return str(int(value)) if value == int(value) else f"{value.normalize():f}"
    return str(value)


def _is_scalar(value: Any) -> bool:
    """A text, a number or nothing."""
    return value is None or (
        isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
    )


def _is_blank(value: Any) -> bool:
    return value is None or _is_nan(value) or (isinstance(value, str) and unicode_text.blank(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | Decimal) and not math.isfinite(value)
