"""Replicas of the engine in Ray actors: the results of one engine, also when one dies."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.config import Ray
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.evaluation.generation import Completion, OnTokens, Request, engine_options
from slot_vllm.evaluation.replicas import Replica, Replicas, _batches, _resources, check_resources
from tests.conftest import starts
from tests.evaluation.conftest import RunMain, WriteConfig

REPLICAS: dict[str, Any] = {"replicas": 2, "resources": {"num_cpus": 1.0}}


@pytest.fixture(scope="module")
@starts
def local_ray() -> Iterator[None]:
    """Ray ends after the last test, which started with the first: it takes seconds."""
    yield
    ray.shutdown()


def _by_problem(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    for sample in samples:
        sample.pop("seconds")
    return {(sample["arm"], sample["id"]): sample for sample in samples}


def _received(notes: Path) -> Path:
    return notes.with_name("received")


class EchoEngine:
    """Notes what it is asked, and dies or fails when it is told to: once the answers that are to
    come before are received."""

    max_model_len = 128

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._received = _received(notes)

    def generate(
        self, requests: list[Request], on_tokens: OnTokens, with_shifts: bool
    ) -> Iterator[Completion]:
        for request in requests:
            before = self._notes.exists() and f"{request.id}\n" in self._notes.read_text()
            with self._notes.open("a") as notes:
                notes.write(f"{request.id}\n")
            order = request.sampling.get("order")
            if order == "die always" or (order and not before):
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline and not self._are_received(
                    request.sampling["after"]
                ):
                    time.sleep(0.05)
                if order == "fail once":
                    raise ValueError("the engine failed")
                os.kill(os.getpid(), signal.SIGKILL)
            shifts = np.full(3, int(request.id), np.float32) if with_shifts else None
            yield Completion(request, [request.id], [[0, 0]], ["stop"], None, shifts)

    def _are_received(self, names: list[str]) -> bool:
        return set(names) <= set(self._received.read_text().split())


class Echo(Replica):
    def __init__(self, options: dict[str, Any]) -> None:
        self._engine: Any = EchoEngine(Path(options["notes"]))


def _answered(
    replicas: Replicas, requests: list[Request], on_tokens: OnTokens, notes: Path
) -> Iterator[str]:
    for completion in replicas.generate(requests, on_tokens):
        with _received(notes).open("a") as received:
            received.write(f"{completion.request.id}\n")
        assert completion.shifts is None
        yield completion.request.id


@pytest.fixture
def ends(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Says how often Ray was ended; it goes on for the next test."""
    ends: list[str] = []
    monkeypatch.setattr("ray.shutdown", lambda: ends.append("ended"))
    return ends


def _echoes(monkeypatch: pytest.MonkeyPatch, notes: Path) -> Replicas:
    _received(notes).touch()
    monkeypatch.setattr("slot_vllm.evaluation.replicas.Replica", Echo)
    return Replicas({"notes": str(notes)}, Ray(**REPLICAS))


@pytest.mark.parametrize("order", ["die once", "fail once"])
def test_only_what_a_replica_left_unanswered_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[str], order: str
) -> None:
    notes = tmp_path / "notes"
    replicas = _echoes(monkeypatch, notes)
    assert replicas.max_model_len == 128
    ending = {"order": order, "after": ["8"]}
    requests = [Request(str(i), [], ending if i == 9 else {}) for i in range(16)]
    told: list[tuple[str, int]] = []
    answered = list(
        _answered(replicas, requests, lambda name, count: told.append((name, count)), notes)
    )
    assert sorted(answered, key=int) == [str(i) for i in range(16)]
    for name in answered:
        counts = [count for one, count in told if one == name]
        # A replica gets it, and 9 and those behind it another one, before it has tokens.
        assert counts in ([0, 2], [0, 0, 2])
    # 8 was answered by the batch that 9 ended; 10 and 11 had not been asked.
    asked = sorted(map(int, notes.read_text().split()))
    assert asked == sorted([*range(16), 9])

    again = list(replicas.generate(requests, lambda name, count: None, with_shifts=True))
    # The very requests: only answers come from a replica.
    assert all(one.request is requests[int(one.request.id)] for one in again)
    shifts = {one.request.id: one.shifts for one in again}
    for i in range(16):
        one = shifts.pop(str(i))
        assert one is not None and one.tolist() == [i] * 3
    assert not shifts
    replicas.close()
    assert ends == ["ended"]


def test_a_problem_that_ends_every_replica_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: list[str]
) -> None:
    monkeypatch.setattr("slot_vllm.evaluation.replicas.RESTARTS", 1)
    notes = tmp_path / "notes"
    replicas = _echoes(monkeypatch, notes)
    others = {"0", "1", "4", "5", "6", "7"}
    ending = {"order": "die always", "after": sorted(others)}
    requests = [Request(str(i), [], ending if i == 2 else {}) for i in range(8)]
    with pytest.raises(RunFailed, match="a replica failed"):
        list(_answered(replicas, requests, lambda name, count: None, notes))
    # The others' answers are not lost with it: only its own batch is.
    assert others <= set(_received(notes).read_text().split())
    # Twice each of two replicas.
    assert notes.read_text().split().count("2") == 4
    replicas.close()


@pytest.mark.full
def test_same_results_as_one_engine_though_a_replica_dies(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_ray: None,
) -> None:
    assert run_main("--config", write_config(), "--output-dir", tmp_path / "one") == 0

    generate = Replicas.generate

    def with_a_death(self: Replicas, *arguments: Any, **named: Any) -> Iterator[Completion]:
        completions = generate(self, *arguments, **named)
        yield next(completions)
        ray.kill(self._replicas[0], no_restart=False)
        yield from completions

    monkeypatch.setattr(Replicas, "generate", with_a_death)
    config = write_config(ray=REPLICAS)
    assert run_main("--config", config, "--output-dir", tmp_path / "two") == 0
    one, two = (_by_problem(tmp_path / name / "samples.jsonl") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, sample in one.items():
        losses = [(s.pop("first_loss"), s.pop("last_loss")) for s in (sample, two[key])]
        assert sample == two[key]
        if sample["steps"]:
            assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_batches_leave_nothing_out() -> None:
    for count in (0, 1, 3, 8, 1000):
        requests = [Request(str(i), [], {}) for i in range(count)]
        batches = list(_batches(requests, 3))
        assert [request for batch in batches for request in batch] == requests
        assert all(1 <= len(batch) <= 64 for batch in batches)


def test_resources(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    options = engine_options(configuration.load(write_config()))
    asked = _resources(options, Ray(replicas=1, resources={"num_cpus": 2.0, "big": 1.0}))
    assert asked == {"num_cpus": 2.0, "num_gpus": 0, "resources": {"big": 1.0}}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = _resources({"tensor_parallel_size": 4}, Ray(replicas=1))
    assert asked == {"num_cpus": 1, "num_gpus": 4, "resources": {}}


def test_more_than_the_cluster_has_is_an_error_instead_of_a_wait() -> None:
    wanted = {"num_cpus": 1, "num_gpus": 2, "resources": {"big": 1}}
    there = {"CPU": 8, "GPU": 4, "big": 2}
    check_resources(wanted, 2, there)
    with pytest.raises(ConfigError, match="they need 6 GPU in all; the cluster has 4"):
        check_resources(wanted, 3, {**there, "big": 3})
    with pytest.raises(ConfigError, match="big in all; the cluster has 0"):
        check_resources(wanted, 1, {"CPU": 8, "GPU": 4})
