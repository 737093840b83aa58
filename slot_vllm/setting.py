"""What a setting is: what is said of it, and the types of values that settings have in common."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Setting:
    """What docs/settings.md says of a setting, and what tests try. Type, range and default are the
    field's own.

    meaning, cost: one line of Markdown each.
    tried: values that are not the default; every one of a setting that the optimizer reads is
        compared with the oracle.
    shares: whether requests that differ in it alone share a delta.
    """

    meaning: str
    cost: str = "nothing"
    tried: tuple[Any, ...] = ()
    shares: bool = False

    @classmethod
    def of(cls, field: FieldInfo) -> "Setting":
        return next(mark for mark in field.metadata if isinstance(mark, cls))


def number(value: Any) -> Any:
    # JSON `true` is not a number, and neither is a string that looks like one.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is required")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is required")
    return value


def integer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("an integer is required")
    return value


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("a list of two numbers is required")
    return tuple(value)


def or_none(check: Callable[[Any], Any]) -> BeforeValidator:
    # HTTP requests cannot say null.
    return BeforeValidator(lambda value: None if value is None or value == "none" else check(value))


Integer = Annotated[int, BeforeValidator(integer)]
Count = Annotated[Integer, Field(ge=0)]
Number = Annotated[float, BeforeValidator(number)]
# In float32 a beta nearer to 1 would be 1, and a smaller eps 0.
_Beta = Annotated[Number, Field(ge=0, le=0.9999999)]
Betas = Annotated[tuple[_Beta, _Beta], BeforeValidator(_pair)]
