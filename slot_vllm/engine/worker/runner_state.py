"""SLOT's state on one model runner, and what is asked of it from outside."""

from collections.abc import Collection

import torch
from torch import Tensor

from slot_vllm.engine.wire.receipt_dict import ReceiptDict
from slot_vllm.engine.wire.worker_metrics import WorkerMetrics
from slot_vllm.engine.worker import receipts
from slot_vllm.engine.worker.delta_cache import DeltaCache
from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.learning import MIB, Learner, reserve_workspace
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.engine.worker.prompt_buffers import PromptBuffers
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.registry import Registry
from slot_vllm.engine.worker.sharing import Sharing
from slot_vllm.engine.worker.statistics import Statistics
from slot_vllm.engine.worker.step import Step
from slot_vllm.engine.worker.table_filling import TableFilling
from slot_vllm.params import SlotConfig


class RunnerState:
    """All of it hangs on that runner; nothing is shared in the process. Raises SlotError if the
    workspace is too small for the head."""

    def __init__(
        self,
        config: SlotConfig,
        linear_head: LinearHead,
        max_requests: int,
        device: torch.device,
    ) -> None:
        self.linear_head = linear_head
        ranks = linear_head.ranks
        size = linear_head.head().hidden_size
        self.workspace, self.workspace_size = reserve_workspace(config, linear_head, device)
        self.table = DeltaTable(max_requests, linear_head.head())
        self.buffers = PromptBuffers(config.pending_mb * MIB, device)
        cache = DeltaCache(config.delta_cache_mb * MIB, size, device, waits=ranks.size > 1)
        self.statistics = statistics = Statistics(device, config.final_loss)
        counters = statistics.counters
        self.rows = PromptRows(self.buffers, counters)
        self.failures = Failures(counters, self.rows, ranks)
        self.registry = Registry(config, counters, self.failures, self.rows, self.table)
        self.sharing = Sharing(config, cache, self.registry, self.failures, self.rows, self.table)
        self.learner = Learner(
            config, linear_head, self.workspace, self.failures, self.rows, statistics
        )
        filling = TableFilling(self.table, linear_head, self.registry, self.failures)
        self.step = Step(
            self.registry, self.failures, self.rows, self.sharing, self.learner, filling, statistics
        )

    def receipt(self, request_id: str) -> ReceiptDict | None:
        """By the id that its output shows, if receipts are kept. Waits for the device."""
        found = self.receipts_of([request_id])[request_id]
        return next((r for r in found if r["request_id"] == request_id), None)

    def receipts_of(self, response_ids: Collection[str]) -> dict[str, list[ReceiptDict]]:
        """The same of the prompts of a server's responses."""
        requests = self.registry.requests.values()
        found = self.registry.receipts.of_responses(response_ids, requests)
        return {name: list(map(receipts.read, own)) for name, own in found.items()}

    @torch.inference_mode()
    def token_shifts(self, request_id: str) -> Tensor | None:
        """W delta, (V,) float32, of a request that the registry finds. All ranks call it."""
        learned = self.registry.find(request_id)
        if learned is None:
            return None
        head = self.linear_head.head()
        shifts = torch.empty(1, head.vocabulary, device=learned.delta.device)
        ranks = self.linear_head.ranks
        ranks.together(lambda: head.exact_shift(learned.delta.unsqueeze(0), out=shifts))
        return self.linear_head.whole(shifts)[0]

    def stats(self) -> dict[str, int | float]:
        """Waits for the device."""
        self.statistics.log_not_finite(self.failures)
        return {
            **self.statistics.read(),
            "requests": len(self.registry.with_slot),
            "table_rows": len(self.table),
            "pending_device_bytes": self.buffers.device_bytes,
            "pending_host_bytes": self.buffers.host_bytes,
            "kept_deltas": len(self.registry.kept),
            "shared_deltas": len(self.sharing.cache),
            "workspace_bytes": self.workspace.size,
        }

    def metrics(self) -> WorkerMetrics:
        return {"stats": self.stats(), "histograms": self.statistics.histograms()}
