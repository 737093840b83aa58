"""Replicas of the engine as Ray actors, which share the problems."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayError

from slot_vllm.evaluation.config import Ray
from slot_vllm.evaluation.errors import ConfigError, RunFailed, one_line
from slot_vllm.evaluation.generation import Completion, OnTokens, Request, VllmEngine

logger = logging.getLogger(__name__)

# How often Ray starts a replica that died.
RESTARTS = 3
_LARGEST_BATCH = 64


class Replica:
    """One engine, in an actor's process."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._engine = VllmEngine(options)

    def max_model_len(self) -> int:
        return self._engine.max_model_len

    def generate(
        self, requests: Sequence[Request], with_shifts: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Per completion its request's id, as who asks has the request, and all else in it."""
        for completion in self._engine.generate(requests, lambda name, count: None, with_shifts):
            answer = {**vars(completion)}
            yield answer.pop("request").id, answer


class Replicas:
    """Engines that share the requests in batches. A replica that dies is started anew, and what it
    had not answered yet is asked again. ``options`` are the arguments of ``vllm.LLM``.

    Raises ConfigError for more than the cluster has, RunFailed if one does not start or the last
    one is lost.
    """

    def __init__(self, options: Mapping[str, Any], settings: Ray) -> None:
        _connect(settings.address)
        wanted = _resources(options, settings)
        check_resources(wanted, settings.replicas, ray.cluster_resources())
        actor = ray.remote(Replica).options(max_restarts=RESTARTS, **wanted)
        self._replicas = [actor.remote(dict(options)) for _ in range(settings.replicas)]
        self.max_model_len = min(_result([self._started(r) for r in self._replicas]))

    def generate(
        self, requests: Sequence[Request], on_tokens: OnTokens, with_shifts: bool = False
    ) -> Iterator[Completion]:
        waiting = deque(_batches(requests, len(self._replicas)))
        starting = {self._started(replica): replica for replica in self._replicas}
        idle: list[Any] = []
        busy: dict[Any, tuple[Any, dict[str, Request]]] = {}
        lost = RunFailed("there is no replica")
        while waiting or busy:
            while waiting and idle:
                replica, batch = idle.pop(), waiting.popleft()
                generate = replica.generate.options(num_returns="streaming")
                answers = generate.remote(batch, with_shifts)
                busy[answers] = replica, {request.id: request for request in batch}
                for request in batch:
                    on_tokens(request.id, 0)
            if not (busy or starting):
                raise lost
            [ready], _ = ray.wait([*busy, *starting], num_returns=1, fetch_local=False)
            if ready in starting:
                replica = starting.pop(ready)
                try:
                    _result(ready)
                    idle.append(replica)
                except RunFailed as error:
                    logger.warning("%s; it is lost", error)
                    lost = error
                continue
            replica, asked = busy[ready]
            try:
                request_id, answer = ray.get(next(ready))
            except StopIteration:
                del busy[ready]
                idle.append(replica)
            except RayError as error:
                del busy[ready]
                reason = str(error).strip().splitlines()[-1]
                logger.warning("a replica ended with %s answers to come: %s", len(asked), reason)
                if not isinstance(error, RayActorError):  # its engine failed, it did not
                    ray.kill(replica, no_restart=False)
                waiting.appendleft(list(asked.values()))
                starting[self._started(replica)] = replica
            else:
                completion = Completion(asked.pop(request_id), **answer)
                on_tokens(request_id, sum(map(len, completion.tokens)))
                yield completion

    def _started(self, replica: Any) -> Any:
        """Is ready when the replica is; then it says how long its prompts may be."""
        return replica.max_model_len.options(max_task_retries=-1).remote()

    def close(self) -> None:
        """Ends the replicas, and Ray if it was started for them."""
        for replica in self._replicas:
            ray.kill(replica)
        ray.shutdown()


def _connect(address: str | None) -> None:
    passed_on = {k: v for k, v in os.environ.items() if k.startswith(("VLLM_", "HF_"))}
    # An engine core in a process of its own could die without its replica: nobody would notice.
    passed_on["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
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
        raise RunFailed(f"a replica failed: {one_line(error)}") from error
