"""What an engine's workers must have alike, and that nodes which do not end instead of waiting."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from slot_vllm.engine.worker import common_settings
from slot_vllm.engine.worker.common_settings import common_config, differences
from slot_vllm.params import SlotConfig, SlotError
from tests.conftest import ROOT
from tests.engine.vllm_command import vllm_command


def report(node: str = "a", version: str = "1.0", **changed: Any) -> dict[str, Any]:
    error = changed.pop("error", None)
    settings = {} if error else SlotConfig(**changed).model_dump(mode="json")
    return {"node": node, "version": version, "settings": settings, "error": error}


@pytest.mark.parametrize(
    ("reports", "problems"),
    [
        ([report()], []),
        ([report("a"), report("a"), report("b"), report("b")], []),
        (
            [report("a"), report("a"), report("b", "1.1"), report("c"), report("b", "1.1")],
            [
                "slot_vllm is 1.0 on a (rank 0, 1), c (rank 3), 1.1 on b (rank 2, 4); "
                "every node needs the same version"
            ],
        ),
        (
            [report("a", report_loss=True, betas=(0.5, 0.9)), report("b", hidden_cache="off")],
            [
                "slot.betas is [0.5, 0.9] on a (rank 0), [0.9, 0.999] on b (rank 1); "
                "every node needs the same settings",
                "slot.hidden_cache is 'auto' on a (rank 0), 'off' on b (rank 1); "
                "every node needs the same settings",
                "slot.report_loss is True on a (rank 0), False on b (rank 1); "
                "every node needs the same settings",
            ],
        ),
        # Another version's settings are others.
        ([report("a", "1.0", steps=3), report("b", "1.1", steps=4)], ["slot_vllm is 1.0 on a"]),
        ([report("a"), report("b", error="no head")], ["on b (rank 1): no head"]),
        ([report("a", error="no head"), report("b", error="no head")], ["no head"]),
    ],
)
def test_differences(reports: list[dict[str, Any]], problems: list[str]) -> None:
    found = sorted(differences(reports))
    assert len(found) == len(problems)
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True))


class Group:
    """Of two workers; the other one reports ``report``, or nothing in time."""

    cpu_group = None

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """two_workers(other): this is one of two tensor-parallel workers; what the other reports, or
    None if it never does."""

    def set_up(other: dict[str, Any] | None) -> None:
        def all_gather_object(parts: list[Any], own: Any, group: Any) -> None:
            if other is None:
                raise RuntimeError("Timed out waiting 1800000ms")
            parts[:] = [own, [other]]

        monkeypatch.setattr(common_settings, "get_tp_group", lambda: Group(2))
        monkeypatch.setattr(common_settings, "get_pp_group", lambda: Group(1))
        monkeypatch.setattr(common_settings, "read_config", lambda config: SlotConfig(**config))
        monkeypatch.setattr(common_settings, "__version__", "1.0")
        monkeypatch.setattr("platform.node", lambda: "a")
        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)

    return set_up


def test_settings_that_are_the_same(two_workers: Any) -> None:
    two_workers(report("b", steps=3))
    checked: list[SlotConfig] = []
    config = common_config({"steps": 3}, checked.append)
    assert config.steps == 3 and checked == [config]


def test_what_is_wrong_with_one_worker_is_raised_on_both(two_workers: Any) -> None:
    def refuse(config: SlotConfig) -> None:
        raise SlotError("no such attribute")

    two_workers(report("b"))
    with pytest.raises(SlotError, match=r"^on a \(rank 0\): no such attribute$"):
        common_config({}, refuse)
    two_workers(report("b", error="no such attribute"))
    with pytest.raises(SlotError, match=r"^on b \(rank 1\): no such attribute$"):
        common_config({}, lambda config: None)


def test_a_worker_without_slot(two_workers: Any) -> None:
    two_workers(None)
    with pytest.raises(SlotError, match=r"every node must be started with --worker-ext.*Timed out"):
        common_config({}, lambda config: None)


# Many times what it takes: nodes that wait for one another would wait for ever.
START_SECONDS = 1800


@contextmanager
def node(rank: int, port: int, model: str, slot: dict[str, Any], log: Path) -> Iterator[Any]:
    """One of two nodes of a tensor-parallel server; both are this one."""
    command = [
        *vllm_command(forked=True), "serve", model, "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "320", "--kv-cache-memory-bytes", str(1 << 26),
        "--tensor-parallel-size", "2", "--nnodes", "2", "--node-rank", str(rank),
        "--master-addr", "127.0.0.1", "--master-port", str(port),
        "--worker-extension", "slot_vllm", "--additional-config", json.dumps({"slot": slot}),
        *(["--headless"] if rank else ["--host", "127.0.0.1", "--port", "0"]),
    ]  # fmt: skip
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(rank),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def test_nodes_with_other_settings_do_not_start(tiny_model: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / f"node-{rank}.log" for rank in range(2)]
    with ExitStack() as nodes:
        processes = [
            nodes.enter_context(node(rank, port, tiny_model, {"report_loss": rank == 1}, log))
            for rank, log in enumerate(logs)
        ]
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(START_SECONDS), log.read_text()[-3000:]
            assert "SlotError: slot.report_loss is False on " in log.read_text()
            assert "True on " in log.read_text() and "same settings" in log.read_text()
