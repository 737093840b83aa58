"""What an engine asks for, and its resolved settings, in every process of it."""

import platform
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from slot_vllm import __version__
from slot_vllm.params import SlotConfig, SlotError

EXTENSION = "slot_vllm.SlotWorkerExtension"
# Keys of vLLM's additional_config: the settings, and that the front end's plugin, of this version,
# checked the engine and has admission in place.
SETTINGS = "slot"
CHECKED = "slot_checked"
# That requests reach the engine core without admission: it is done there.
ADMIT_IN_CORE = "slot_admit_in_core"


def asks_for_slot(vllm_config: Any) -> bool:
    """Whether the engine's worker extension is ours, under any name, or a subclass of ours."""
    name = vllm_config.parallel_config.worker_extension_cls
    if not name or name == EXTENSION:
        return bool(name)
    module, _, attribute = name.rpartition(".")
    try:
        extension = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return False  # vLLM reports it
    # By name: importing our own class would wrap what other engines do not need.
    ours = ("slot_vllm.engine.worker.extension", "SlotWorkerExtension")
    return any((c.__module__, c.__qualname__) == ours for c in getattr(extension, "__mro__", ()))


def admits_in_core(vllm_config: Any) -> bool:
    """Whether the engine core admits the requests, as the front end does not."""
    additional = vllm_config.additional_config
    return isinstance(additional, Mapping) and bool(additional.get(ADMIT_IN_CORE))


def read_config(vllm_config: Any) -> SlotConfig:
    """The settings that start-up resolved and wrote there, in whatever process this is. Raises
    SlotError where it never ran, for then nothing would resolve the requests' settings either, and
    where the package that ran it is of another version, as it may be on another node."""
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping) or CHECKED not in additional:
        raise SlotError(
            "the engine's worker extension is SLOT, but the plugin slot_vllm was not loaded where "
            "the engine was configured; if VLLM_PLUGINS is set, it must name slot_vllm"
        )
    if additional[CHECKED] != __version__:
        raise SlotError(
            f"slot_vllm {additional[CHECKED]} configured the engine, but on {platform.node()} "
            f"slot_vllm {__version__} is installed; every node needs the same version"
        )
    return SlotConfig.model_validate(additional[SETTINGS])
