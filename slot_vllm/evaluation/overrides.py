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
    for parent in parents:
        place = _item(place, parent, setting)
    if isinstance(place, list):
        place[_index(place, last, setting)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"--set {setting}: {'.'.join(parents)} is not a mapping or a list")


def _item(place: Any, key: str, setting: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, setting)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise ConfigError(f"--set {setting}: {key} is not in a mapping or a list")


def _index(items: list[Any], key: str, setting: str) -> int:
    names = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = ", ".join([*map(str, range(len(items))), *(str(name) for name in names if name)])
    raise ConfigError(f"--set {setting}: no item {key}; allowed: {known}")
