"""``--set key=value``: settings laid over those of a run's file."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from slot_vllm.evaluation.errors import ConfigError


def override(values: dict[str, Any], setting: str, parse: Callable[[str], Any]) -> None:
    """Lays one dotted ``key=value`` over the file's values, in place.

    A list's items are named by their index, or by their ``name``: ``arms.slot.lr=0.2``.
    parse: reads the value, as YAML. Raises ConfigError for what cannot be laid over the file's.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: key=value is required")
    try:
        value = parse(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {setting}: the value is not YAML") from None
    *parents, last = key.split(".")
    place: Any = values
    for depth, parent in enumerate(parents, 1):
        inner = _key(place, parent, setting)
        place = place.setdefault(inner, {}) if isinstance(place, dict) else place[inner]
        if not isinstance(place, dict | list):
            path = ".".join(parents[:depth])
            raise ConfigError(f"--set {setting}: {path} is not a mapping or a list")
    place[_key(place, last, setting)] = value


def _key(place: dict[str, Any] | list[Any], name: str, setting: str) -> Any:
    """By which a mapping or a list has the item of that name."""
    if isinstance(place, dict):
        return name
    names = [item.get("name") if isinstance(item, Mapping) else None for item in place]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    known = ", ".join([*map(str, range(len(place))), *(str(name) for name in names if name)])
    raise ConfigError(f"--set {setting}: no item {name}; allowed: {known}")
