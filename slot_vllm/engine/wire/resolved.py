"""What admission resolved of a request, on its way from the front end to scheduler and worker."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slot_vllm import __version__
from slot_vllm.params import SlotError, SlotParams

# The key of the resolved settings in SamplingParams.extra_args, on their way to the worker.
RESOLVED = "slot"
# Why the requests of a beam search are bypassed; also the counter's name.
BEAM_SEARCH = "beam_search"


class ResolvedDict(dict[str, Any]):
    """Marks settings that admission wrote: a client can send a dict, but not this class."""


@dataclass(frozen=True)
class Resolved:
    """request_id: as the caller knows it.
    bypassed: why SLOT is left out, or None.
    cache_salt: the request's, which vLLM does not tell the workers.
    spans: where the tokens stand that are learned from, where the worker cannot tell.
    counted: whether it is a request of its own, and not a further step of a search.
    version: of the package that admitted it."""

    request_id: str
    params: SlotParams
    bypassed: str | None
    cache_salt: str | None
    spans: Sequence[Sequence[int]] | None = None
    counted: bool = True
    version: str = __version__


def read_resolved(value: Mapping[str, Any]) -> Resolved:
    return Resolved(**{**value, "params": SlotParams(**value["params"])})


def read_admitted(value: Mapping[str, Any]) -> Resolved:
    """``read_resolved`` in a worker, which with data parallelism may be on another node than the
    front end. Raises SlotError if it has another version of the package."""
    if value.get("version") != __version__:
        raise SlotError(
            f"slot_vllm {value.get('version')} admitted the request, but on {platform.node()} "
            f"slot_vllm {__version__} is installed; every node needs the same version"
        )
    return read_resolved(value)
