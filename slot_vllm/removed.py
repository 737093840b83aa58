"""What settings could say in earlier releases, and what to use instead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

# The type of the pydantic error of a removed name.
ERROR = "removed"


@dataclass(frozen=True)
class Removal:
    """default: what the record of a run holds where the setting was not used."""

    default: Any
    instead: str


_LESS = "for a smaller change use fewer slot_steps or a smaller slot_lr"

# By a setting's name; a preset is ``preset=NAME``, and its default says nothing.
REMOVED = {
    "optimizer": Removal("adamw", "AdamW takes the steps; use slot_lr and slot_steps"),
    "lr_schedule": Removal("constant", "the rate is slot_lr in every step; use a smaller one"),
    "tolerance": Removal(0.0, "all steps are taken; use fewer slot_steps"),
    "target": Removal("hidden", "delta on the hidden states is what is learned; leave it out"),
    "guard": Removal("none", f"all of delta is applied; {_LESS}"),
    "max_kl": Removal(None, f"all of delta is applied; {_LESS}"),
    "preset=safe": Removal(None, f"it left nothing of delta; {_LESS}"),
}

# Keys of a run's file; what stands behind them in one where they were not used is null.
_OF_RUN = {
    "model_script": "removed in 0.2.0 (no ready file named one): run the script before; `model` "
    "names what it makes"
}


def refuse(values: Mapping[str, Any]) -> None:
    """Raises PydanticCustomError for the first removed setting or preset that is named."""
    for key, value in values.items():
        for name in (key, f"{key}={value}" if isinstance(value, str) else key):
            if (removal := REMOVED.get(name)) is not None:
                raise PydanticCustomError(
                    ERROR,
                    "{name}: removed in 0.2.0 (it showed no use on 20 problems of a "
                    "real model, see docs/study.md): {instead}",
                    {"name": name, "instead": removal.instead},
                )


def removed_from_run(values: Mapping[str, Any]) -> str | None:
    """What to say of the first removed key of a run's file."""
    return next((f"{key}: {said}" for key, said in _OF_RUN.items() if key in values), None)


def split(stored: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a stored run: those that there are still, and the removed ones that were used."""
    kept = {key: value for key, value in stored.items() if key not in REMOVED}
    gone = {key: value for key, value in stored.items() if key not in kept}
    return kept, {key: value for key, value in gone.items() if value != REMOVED[key].default}


def of_stored_run(config: Mapping[str, Any], used: bool = True) -> dict[str, Any]:
    """A stored run's configuration without removed settings; with those that were used, if
    ``used``."""

    def without(settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        kept, gone = split(settings)
        return {**kept, **(gone if used else {})}

    found = {k: v for k, v in config.items() if k not in _OF_RUN or (used and v is not None)}
    if isinstance(found.get("arms"), list):
        found["arms"] = [without(arm) for arm in found["arms"]]
    sweep = found.get("sweep")
    if isinstance(sweep, Mapping) and "settings" in sweep:
        found["sweep"] = {**sweep, "settings": without(sweep["settings"])}
    return found
