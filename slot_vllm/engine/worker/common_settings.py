"""What all workers of an engine must have alike, on whatever nodes: the package and its settings.

With ``--nnodes`` every node configures its own workers. Workers that differ would exchange tensors
of different shapes, and wait for one another for ever.
"""

import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.distributed.parallel_state import get_pp_group, get_tp_group

from slot_vllm import __version__
from slot_vllm.engine.wire.engine_settings import read_config
from slot_vllm.params import SlotConfig, SlotError

# Of a worker: node, version, settings and error. Of plain types, for other versions to read.
Report = dict[str, Any]


def common_config(vllm_config: Any, check: Callable[[SlotConfig], None]) -> SlotConfig:
    """The settings of this worker, which all workers of its engine have; all have to call it.

    check: what else a worker has to pass. Raises SlotError on all workers, wherever the cause is.
    """
    config, failed = None, None
    try:
        config = read_config(vllm_config)
        check(config)
    except SlotError as error:
        failed = error
    reports = _gather(
        {
            "node": platform.node(),
            "version": __version__,
            "settings": {} if config is None else config.model_dump(mode="json"),
            "error": None if failed is None else str(failed),
        }
    )
    problems = differences(reports)
    if problems or config is None:
        raise SlotError("; ".join(problems)) from failed
    return config


def differences(reports: Sequence[Report]) -> list[str]:
    """Why workers that report so cannot work together. reports: in the order of their ranks."""
    errors = _where(reports, [report["error"] for report in reports])
    if list(errors) != [None]:
        if len(errors) == 1:
            return list(errors)
        return [f"on {where}: {error}" for error, where in errors.items() if error is not None]
    versions = _where(reports, [report["version"] for report in reports])
    if len(versions) > 1:
        return [f"slot_vllm is {_listed(versions)}; every node needs the same version"]
    settings = [report["settings"] for report in reports]
    values = {key: _where(reports, [repr(own[key]) for own in settings]) for key in settings[0]}
    return [
        f"slot.{key} is {_listed(found)}; every node needs the same settings"
        for key, found in values.items()
        if len(found) > 1
    ]


def _where(reports: Sequence[Report], values: Sequence[Any]) -> dict[Any, str]:
    """Each of ``values``, one per report, and the nodes and ranks that have it."""
    ranks: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rank, (report, value) in enumerate(zip(reports, values, strict=True)):
        ranks[value][report["node"]].append(str(rank))
    return {
        value: ", ".join(f"{node} (rank {', '.join(own)})" for node, own in nodes.items())
        for value, nodes in ranks.items()
    }


def _listed(where: dict[Any, str]) -> str:
    return ", ".join(f"{value} on {nodes}" for value, nodes in where.items())


def _gather(own: Report) -> list[Report]:
    """Of all workers, in the order of their ranks: those of a stage, then those of all stages."""
    reports = [own]
    for group in (get_tp_group(), get_pp_group()):
        if group.world_size == 1:
            continue
        parts: list[Any] = [None] * group.world_size
        try:
            torch.distributed.all_gather_object(parts, reports, group=group.cpu_group)
        except RuntimeError as error:
            raise SlotError(
                "not every worker said which slot_vllm it has; every node must be started with "
                f"--worker-extension slot_vllm ({error})"
            ) from error
        reports = [report for part in parts for report in part]
    return reports
