"""The requests of one runner: who arrives, who leaves, and what is kept of those that left."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from cachetools import FIFOCache

from slot_vllm.engine.wire.prompt_key import images_of
from slot_vllm.engine.wire.resolved import BEAM_SEARCH, RESOLVED, read_admitted
from slot_vllm.engine.wire.response_ids import without_beam
from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.receipts import Receipts
from slot_vllm.engine.worker.request import SlotRequest, TrackedRequest
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotConfig, named

logger = logging.getLogger("vllm.slot_vllm")


@dataclass(eq=False)
class Registry:
    """requests: those that run, by vLLM's id, the newest last. kept: of those that finished, the
    caller's id and the delta. weights_epoch: how often the weights were changed."""

    config: SlotConfig
    counters: Counter[str]
    failures: Failures
    rows: PromptRows
    table: DeltaTable

    def __post_init__(self) -> None:
        self.requests: dict[str, TrackedRequest] = {}
        self.kept: MutableMapping[str, tuple[str, Learned]] = FIFOCache(self.config.keep_deltas)
        self.receipts = Receipts(self.config.receipts)
        self._warned_unresolved = False
        self.weights_epoch = 0
        self._adapter_epochs: Counter[str] = Counter()

    def get(self, req_id: str) -> SlotRequest | None:
        """A request that arrived with SLOT."""
        request = self.requests.get(req_id)
        return request if isinstance(request, SlotRequest) else None

    @property
    def with_slot(self) -> list[SlotRequest]:
        return [q for q in self.requests.values() if isinstance(q, SlotRequest)]

    def arrive(self, scheduled: Iterable[Any], failure: Failure | None = None) -> None:
        """Take in the new ones of a step. failure: why the ranks cannot agree on who failed."""
        # The V2 runner gets preempted requests as new ones when they resume.
        arrived = [new for new in scheduled if new.req_id not in self.requests]
        failed = [self._try_to_arrive(new) for new in arrived]
        if failure is None:
            failed = [*self.failures.agreed(failed)]
        for new, own in zip(arrived, failed, strict=True):
            if own is not None:
                own = failure or own
                self.failures.count(own, new.req_id)
                self.requests[new.req_id] = TrackedRequest(_external_id(new), "failed", own.reason)

    def restart(self, preempted: Iterable[str]) -> None:
        for req_id in preempted:
            request = self.get(req_id)
            if request is not None:
                # The ranks agree on it when its prompt goes on.
                with self.failures.noted(request, "hidden_cache"):
                    self.rows.restart(request)

    def depart(self, req_ids: Collection[str]) -> None:
        # Sorted: a set's order differs among processes, and the oldest kept deltas go first.
        for req_id in sorted(req_ids):
            try:
                self._depart(req_id)
            except Exception as error:
                self.failures.count(Failure.of(error, "departure"), req_id)

    def find(self, request_id: str) -> Learned | None:
        """The delta of a request by the id that its output shows, if deltas are kept."""
        if not self.config.keep_deltas:
            return None
        running = [(q.external_id, q.learned) for q in self.with_slot if q.status != "prefilling"]
        for external_id, learned in reversed([*self.kept.values(), *running]):
            if external_id == request_id:
                return learned if learned is not None and learned.finite else None
        return None

    def change_adapter(self, name: str) -> None:
        """A LoRA adapter is loaded in place of another."""
        self._adapter_epochs[name] += 1

    def epoch(self, lora_request: Any) -> tuple[int, int]:
        """Of the weights, and of the adapter's."""
        adapter = 0 if lora_request is None else self._adapter_epochs[lora_request.lora_name]
        return self.weights_epoch, adapter

    def _try_to_arrive(self, new: Any) -> Failure | None:
        try:
            self._arrive(new)
        except Exception as error:
            return Failure.of(error, "arrival")
        return None

    def _arrive(self, new: Any) -> None:
        request = self.requests[new.req_id] = self._tracked(new)
        if request.status == "plain" or request.status == "bypassed":
            self.counters[request.status] += 1
        if request.status == "bypassed":
            self.counters[f"bypassed.{request.reason}"] += 1

    def _tracked(self, new: Any) -> TrackedRequest:
        lora_request = new.lora_request
        replaces = lora_request is not None and lora_request.load_inplace
        if replaces:
            # vLLM loads it again for each request that says so, whether that has SLOT or not.
            self.change_adapter(lora_request.lora_name)
        extra_args = getattr(new.sampling_params, "extra_args", None) or {}
        if RESOLVED not in extra_args:
            if new.sampling_params is None or not (self.config.steps or named(extra_args)):
                return TrackedRequest(new.req_id, "plain")
            if not self._warned_unresolved:
                self._warned_unresolved = True
                logger.error("SLOT: requests reach the worker without admission")
            return TrackedRequest(new.req_id, "bypassed", "unresolved")
        resolved = read_admitted(extra_args[RESOLVED])
        name, params = resolved.request_id, resolved.params
        if not resolved.counted:
            # Its search was counted with its first step.
            return TrackedRequest(name, "search_step")
        if resolved.bypassed is not None:
            # A search is known by the request of its first step.
            name = without_beam(name) if resolved.bypassed == BEAM_SEARCH else name
            return TrackedRequest(name, "bypassed", resolved.bypassed, params)
        if not params.steps:
            return TrackedRequest(name, "plain")
        return SlotRequest(
            name,
            req_id=new.req_id,
            params=params,
            tokens=new.prompt_token_ids,
            skipped=self.config.skipped(len(new.prompt_token_ids)),
            lora_request=lora_request,
            cache_salt=resolved.cache_salt,
            # Admission lets no embeddings pass; here their tokens would not tell them apart.
            shareable=not (replaces or new.prompt_embeds is not None),
            epoch=self.epoch(lora_request),
            spans=resolved.spans,
            images=images_of(new),
        )

    def _depart(self, req_id: str) -> None:
        request = self.requests.pop(req_id, None)
        if isinstance(request, SlotRequest):
            # First: which rows are free, the ranks must not see differently.
            if all(other.table_key != request.table_key for other in self.with_slot):
                self.table.remove(request.table_key)
            if request.status == "prefilling":
                self.counters["aborted"] += 1
            elif request.learned is not None and self.config.keep_deltas:
                # An id that is used again is another request's, the newest.
                self.kept.pop(req_id, None)
                self.kept[req_id] = (request.external_id, request.learned)
            self.rows.release(request)
        if request is not None:
            self.receipts.finish(req_id, request)


def _external_id(new: Any) -> str:
    """Of any request, whatever is wrong with it."""
    extra_args = getattr(getattr(new, "sampling_params", None), "extra_args", None)
    resolved = extra_args.get(RESOLVED) if isinstance(extra_args, Mapping) else None
    name = resolved.get("request_id") if isinstance(resolved, Mapping) else None
    return str(name or new.req_id)
