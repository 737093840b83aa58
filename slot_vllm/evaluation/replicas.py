"""Replicas of the engine as Ray actors, which share the problems."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from slot_vllm.evaluation.config import ConfigError, Ray, RunFailed
from slot_vllm.evaluation.generation import (
    Completion,
    OnTokens,
    Request,
    Shifted,
    VllmEngine,
)

# How often Ray starts a replica that died, and how often it repeats a batch that died with it.
RESTARTS = 3
_LARGEST_BATCH = 64


class Replica:
    """One engine, in an actor's process."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._engine = VllmEngine(options)

    def max_model_len(self) -> int:
        return self._engine.max_model_len

    def answer(self, requests: Sequence[Request]) -> list[Completion]:
        return list(self._engine.generate(requests, lambda count: None))

    def token_shifts(self, requests: Sequence[Request]) -> list[Shifted]:
        return list(self._engine.token_shifts(requests))


class Replicas:
    """Engines that share the requests in batches. A replica that dies is started anew and repeats
    the batch that it was at. ``options`` are the arguments of ``vllm.LLM``.

    Raises RunFailed if the replicas do not start or die too often.
    """

    def __init__(self, options: Mapping[str, Any], settings: Ray) -> None:
        _connect(settings.address)
        wanted = _resources(options, settings)
        check_resources(wanted, settings.replicas, ray.cluster_resources())
        actor = ray.remote(Replica).options(
            max_restarts=RESTARTS, max_task_retries=RESTARTS, **wanted
        )
        self._replicas = [actor.remote(dict(options)) for _ in range(settings.replicas)]
        self._max_model_len = min(self._each("max_model_len"))

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def generate(self, requests: Sequence[Request], on_tokens: OnTokens) -> Iterator[Completion]:
        """Yields completions batch by batch."""
        for completion in self._spread("answer", requests):
            on_tokens(sum(map(len, completion.tokens)))
            yield completion

    def token_shifts(self, requests: Sequence[Request]) -> Iterator[Shifted]:
        """Yields W delta batch by batch."""
        return self._spread("token_shifts", requests)

    def close(self) -> None:
        """Ends the replicas, and Ray if it was started for them."""
        for replica in self._replicas:
            ray.kill(replica)
        ray.shutdown()

    def _spread(self, method: str, requests: Sequence[Request]) -> Iterator[Any]:
        """What a method of the replicas returns for batches of the requests, item by item."""
        waiting = deque(_batches(requests, len(self._replicas)))
        idle = list(self._replicas)
        busy: dict[Any, Any] = {}
        while waiting or busy:
            while idle and waiting:
                replica = idle.pop()
                busy[getattr(replica, method).remote(waiting.popleft())] = replica
            [finished], _ = ray.wait(list(busy), num_returns=1)
            idle.append(busy.pop(finished))
            yield from _result(finished)

    def _each(self, method: str) -> list[Any]:
        return _result([getattr(replica, method).remote() for replica in self._replicas])


def _connect(address: str | None) -> None:
    passed_on = {k: v for k, v in os.environ.items() if k.startswith(("VLLM_", "HF_"))}
    ray.init(
        address=address,
        runtime_env={"env_vars": passed_on},
        log_to_driver=False,
        ignore_reinit_error=True,
    )


def _resources(options: Mapping[str, Any], settings: Ray) -> dict[str, Any]:
    own = dict(settings.resources)
    parallel = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    gpus = own.pop("num_gpus", parallel if torch.cuda.is_available() else 0)
    return {"num_cpus": own.pop("num_cpus", 1), "num_gpus": gpus, "resources": own}


def check_resources(wanted: Mapping[str, Any], replicas: int, there: Mapping[str, float]) -> None:
    """Raises ConfigError if the cluster can never hold the replicas: Ray would wait for ever."""
    each = {"CPU": wanted["num_cpus"], "GPU": wanted["num_gpus"], **wanted["resources"]}
    for name, amount in each.items():
        if replicas * amount > there.get(name, 0):
            raise ConfigError(
                f"ray.replicas={replicas}: they need {replicas * amount:g} {name} in all; the "
                f"cluster has {there.get(name, 0):g}"
            )


def _batches(requests: Sequence[Request], replicas: int) -> Iterator[Sequence[Request]]:
    """At least two batches for each replica, so that the fast ones relieve the slow."""
    size = min(_LARGEST_BATCH, -(-len(requests) // (2 * replicas)))
    return (requests[start : start + size] for start in range(0, len(requests), size or 1))


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        raise RunFailed(f"a replica failed: {' '.join(str(error).split())}") from error
