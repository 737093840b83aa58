"""What pydantic found wrong with settings, in one line that says what is allowed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from slot_vllm.removed import ERROR

_SHOWN_CHARACTERS = 100
_KINDS = {int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


@dataclass(frozen=True)
class Allowed:
    """In a field's metadata: what a validator of ours lets pass."""

    text: str


def describe(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
    limits: Mapping[str, str] | None = None,
) -> str:
    """One line for the first problem of a pydantic error: key, value, what is allowed. A key that
    is not known comes first: a misspelled one makes another missing.

    model: what was validated. limits: of its fields, what is allowed if that is less than the
    field itself says.
    """
    problems = error.errors(include_url=False)
    unknown = (problem for problem in problems if problem["type"] in ("extra_forbidden", ERROR))
    problem = next(unknown, problems[0])
    location = problem["loc"]
    key = prefix + ".".join(shown(str(part)) for part in location)
    inner, field = _place(model, location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {', '.join(inner.model_fields)}"
    if problem["type"] == ERROR:
        return f"{key}.{problem['msg']}" if location else f"{prefix}{problem['msg']}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    allowed = (limits or {}).get(str(location[-1])) or (allowed_values(field) if field else "")
    if allowed:
        if problem["type"] == "literal_error":
            message = "unknown value"
        message += f"; allowed: {allowed}"
    return f"{key}={shown(problem['input'], repr)}: {message[:1].lower()}{message[1:]}"


def first_fault(error: ValidationError) -> str:
    """The first problem of a pydantic error, in its words: for files that no user writes."""
    problem = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))


def _place(
    model: type[BaseModel], location: Sequence[int | str]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """The innermost model on the way to a problem, and the last field."""
    field = None
    inner: type[BaseModel] | None = model
    for key in location:
        if isinstance(key, str) and inner is not None and key in inner.model_fields:
            model, field = inner, inner.model_fields[key]
            inner = _model_in(field.annotation)
    return inner or model, field


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def allowed_values(field: FieldInfo) -> str:
    """Of a field, in words; empty where its type and metadata do not tell."""
    return _allowed(field.annotation, field.metadata)


def _allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(arguments[0], [*metadata, *arguments[1:]])
    flat = [m for one in metadata for m in (one.metadata if isinstance(one, FieldInfo) else [one])]
    for mark in flat:
        if isinstance(mark, Allowed):
            return mark.text
    if origin is Literal:
        return one_of(map(repr, arguments))
    if origin in (Union, UnionType):
        parts = [_allowed(argument) for argument in arguments]
        return one_of(parts) if all(parts) else ""
    if origin is tuple and (each := _allowed(arguments[0])):
        return f"a list of {len(arguments)}, each {each}"
    if annotation not in _KINDS:
        return ""
    bounds = (
        f" {words} {getattr(mark, name)}"
        for name, words in _BOUNDS.items()
        for mark in flat
        if hasattr(mark, name)
    )
    return _KINDS[annotation] + "".join(bounds)


def one_of(texts: Iterable[str]) -> str:
    *others, last = texts
    return f"{', '.join(others)} or {last}" if others else last


def shown(value: Any, text_of: Callable[[Any], str] = str) -> str:
    """Of what others sent, as much as fits a message of one line."""
    try:
        text = text_of(value)
    except ValueError:
        # Python writes out no integer of thousands of digits.
        text = f"<{type(value).__name__} too large to show>"
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "..."
    # Lone surrogates, which no answer can carry, and line ends.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
