"""Learning the deltas of the prompts that a step completes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.engine.worker.statistics import Statistics
from slot_vllm.kernels.compiled import library_for
from slot_vllm.kernels.device import to_device
from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.optimize import Learned, optimize
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.warm_up import warm_up
from slot_vllm.optim.workspace import Workspace, WorkspaceSize, choose_size
from slot_vllm.params import SlotConfig, SlotError

MIB = 1 << 20


@dataclass(frozen=True)
class CompletePrompt:
    """rows: gives the hidden states that it learns from, (n - skipped, d) or this rank's slice."""

    request: SlotRequest
    rows: Callable[[], Tensor]


def reserve_workspace(
    config: SlotConfig, linear_head: LinearHead, device: torch.device
) -> tuple[Workspace, WorkspaceSize]:
    """Warmed up, of one size on all ranks. Raises SlotError if that is too small for the head."""
    head = linear_head.head()
    shard = linear_head.shard()
    smallest = smallest_workspace(head, shard)
    size = choose_size(config.workspace_mb, device)
    # What is free on the devices differs.
    size = replace(size, mb=linear_head.ranks.smallest(size.mb))
    if size.bytes < smallest:
        raise SlotError(
            f"slot.workspace_mb={size.mb}: too small for a head of "
            f"{linear_head.describe()}; allowed: {-(-smallest // MIB)} or more"
        )
    # The kernels are compiled now: not in the first requests' time.
    library_for(head.weight)
    workspace = Workspace(size.bytes, device)
    warm_up(head, workspace, shard)
    return workspace, size


@dataclass(eq=False)
class Learner:
    config: SlotConfig
    linear_head: LinearHead
    workspace: Workspace
    failures: Failures
    rows: PromptRows
    statistics: Statistics

    def learn(self, prompts: Sequence[CompletePrompt], row_bytes: int) -> None:
        """Each of their requests is "applied" or "failed" then. row_bytes: of the copy that reading
        a row makes."""
        if not prompts:
            return
        with self.statistics.step_timer.step(len(prompts)) as learning:
            for group in self._groups(prompts, row_bytes):
                self._learn_group(group)
        with self.failures.updating():
            self.statistics.step_timer.collect()
        for prompt in prompts:
            prompt.request.learning = learning

    def _groups(
        self, prompts: Sequence[CompletePrompt], row_bytes: int
    ) -> list[list[CompletePrompt]]:
        """What is copied out of the KV cache has the room that incomplete prompts would have."""
        limit = self.config.pending_mb * MIB
        groups: list[list[CompletePrompt]] = []
        room = 0
        for prompt in prompts:
            needed = len(prompt.request.learns_from) * row_bytes
            room -= needed
            if not groups or room < 0:
                groups.append([])
                room = limit - needed
            groups[-1].append(prompt)
        return groups

    def _learn_group(self, group: Sequence[CompletePrompt]) -> None:
        """All ranks have the same requests, and their hidden states or their failures."""
        read: list[tuple[SlotRequest, Tensor]] = []
        for prompt in group:
            request = prompt.request
            with self.failures.noted(request, "vocabulary"):
                # On a GPU such an index would take the process down.
                if (largest := max(request.targets, default=0)) >= self.linear_head.vocabulary:
                    raise ValueError(f"token {largest} is not in the head's vocabulary")
            if request.failure is None:
                with self.failures.noted(request, "hidden_cache"):
                    own = prompt.rows()
                    if not self._is_whole(own):
                        # Where a rank has no memory for the whole, it must say so before the ranks
                        # gather. What torch allocated once it keeps.
                        own.new_empty(2, self.linear_head.ranks.size, *own.shape)
                    read.append((request, own))
        self.failures.settle([prompt.request for prompt in group])
        prompts: list[tuple[SlotRequest, Prompt]] = []
        whole = [(q, self._whole(rows)) for q, rows in read if q.failure is None]
        for request, hidden in whole:
            with self.failures.noted(request, "hidden_cache"):
                prompts.append((request, self._prompt(request, hidden)))
        self.failures.settle([request for request, _ in whole])
        self._optimize([(q, prompt) for q, prompt in prompts if q.failure is None])

    def _whole(self, rows: Tensor) -> Tensor:
        """(n, d) from this rank's slice of it, where the KV cache has only that."""
        return rows if self._is_whole(rows) else self.linear_head.ranks.gather_columns(rows)

    def _is_whole(self, rows: Tensor) -> bool:
        return rows.shape[1] == self.linear_head.head().hidden_size

    def _prompt(self, request: SlotRequest, rows: Tensor) -> Prompt:
        device = self.linear_head.head().weight.device
        return Prompt(
            rows.to(device, non_blocking=True),
            to_device(request.learns_from, torch.int64, device),
            request.params,
            request.counts,
        )

    def _optimize(self, prompts: Sequence[tuple[SlotRequest, Prompt]]) -> None:
        if not prompts:
            return
        learned = self.failures.attempt("optimizer", lambda: self._deltas(prompts))
        if not isinstance(learned, Failure):
            for (request, _), own in zip(prompts, learned, strict=True):
                self.rows.finish(request, "applied", own)
                self.statistics.counters["prompt_tokens"] += len(request.learns_from)
            with self.failures.updating():
                self.statistics.observe_drops([own.losses for own in learned])
        elif len(prompts) == 1:
            self.failures.fail(prompts[0][0], learned)
        else:
            # One bad prompt must cost neither the engine nor its neighbours' deltas.
            for one in prompts:
                self._optimize([one])

    def _deltas(self, prompts: Sequence[tuple[SlotRequest, Prompt]]) -> list[Learned]:
        learned = optimize(
            self.linear_head.head(),
            [prompt for _, prompt in prompts],
            self.workspace,
            final_loss=self.config.final_loss,
            shard=self.linear_head.shard(),
            with_last_kl=self.config.receipts > 0,
        )
        if self.config.check_ranks:
            self._check_ranks(learned)
        return learned

    def _check_ranks(self, learned: list[Learned]) -> None:
        digest = hashlib.sha256()

        def read() -> None:
            for one in learned:
                digest.update(one.delta.cpu().numpy().tobytes())

        self.linear_head.ranks.together(read)
        if not self.linear_head.ranks.same(digest.digest()[:8]):
            self.statistics.counters["ranks_differ"] += 1
            raise RuntimeError(
                "check_ranks: the tensor-parallel ranks learned different deltas; "
                f"rank {self.linear_head.ranks.rank} has {digest.hexdigest()}"
            )
