"""Equal prompts have one delta: who learns it, and who uses it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from slot_vllm.engine.wire.prompt_key import prompt_key
from slot_vllm.engine.worker.delta_cache import DeltaCache
from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.registry import Registry
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotConfig


@dataclass(eq=False)
class Sharing:
    """cache: deltas of earlier requests."""

    config: SlotConfig
    cache: DeltaCache
    registry: Registry
    failures: Failures
    rows: PromptRows
    table: DeltaTable

    def set_key(self, request: SlotRequest) -> None:
        """What other requests must have in common with this one to use its delta."""
        # What was computed before weights changed and after is like no other prompt.
        mixed = request.epoch != self.registry.epoch(request.lora_request)
        if self.config.delta_cache_mb and request.shareable and not mixed:
            request.key = prompt_key(
                request.tokens,
                request.skipped,
                request.params,
                request.lora_request,
                request.cache_salt,
                request.epoch,
                request.images,
            )

    def find(self, requests: Sequence[SlotRequest]) -> dict[str, Learned]:
        """By table key, what was learned before; who learns now depends on it."""
        known: dict[str, Learned] = {}
        for request in requests:
            with self.failures.noted(request, "table"):
                found = None if request.key is None else self._find(request.key)
                if found is not None:
                    known[request.table_key] = found
        self.failures.settle(requests)
        return known

    def follow(
        self,
        followers: Iterable[SlotRequest],
        owners: Mapping[str, SlotRequest],
        known: Mapping[str, Learned],
    ) -> None:
        """Give them what their ``owners`` learned or failed at in this step, or what was ``known``;
        both by table key."""
        for request in followers:
            owner = owners.get(request.table_key)
            if owner is None:
                self.rows.finish(request, "shared", known[request.table_key])
            elif owner.failure is not None:
                self.failures.fail(request, owner.failure)
            else:
                self.rows.finish(request, "shared", owner.learned)

    def put(self, requests: Iterable[SlotRequest]) -> None:
        """Let later requests use what these learned."""
        for request in requests:
            if request.key is None or request.learned is None:
                continue
            with self.failures.contained("table", "a delta is not shared"):
                self.cache.put(request.key, request.learned)

    def forget(self) -> None:
        """From now on no request uses a delta that was learned before: the weights changed."""
        self.registry.weights_epoch += 1
        self.cache.clear()

    def _find(self, key: bytes) -> Learned | None:
        learned = self.cache.get(key)
        if learned is not None:
            return learned
        for request in self.registry.with_slot:
            if request.key == key and request.learned is not None:
                # As in ``DeltaCache``: ranks must not know it at different times.
                if not request.learned.known_not_finite(self.cache.waits):
                    return request.learned
                # It is counted, and its delta is zero: the row is for one that is learned anew.
                self.rows.finish(request, "failed", reason="non_finite")
                self.table.remove(request.table_key)
        return None
