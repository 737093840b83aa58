"""The deltas of one model runner: born when a prompt is complete, gone with their request."""

import logging
import time
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slot_vllm.engine.admission import RESOLVED, read_resolved
from slot_vllm.engine.delta_cache import DeltaCache, prompt_key
from slot_vllm.engine.delta_table import DeltaTable
from slot_vllm.engine.linear_head import Additions, LinearHead
from slot_vllm.engine.pending import PendingRows
from slot_vllm.kernels.compiled import library_for
from slot_vllm.loss_tokens import flags
from slot_vllm.optim.device import to_device
from slot_vllm.optim.optimize import (
    Learned,
    Prompt,
    optimize,
    smallest_workspace_for_all,
    warm_up,
)
from slot_vllm.optim.workspace import Workspace, choose_size
from slot_vllm.params import SlotConfig, SlotError, SlotParams, named

logger = logging.getLogger("vllm.slot_vllm")

MIB = 1 << 20


class SchedulerOutput(Protocol):
    """What is read of vLLM's SchedulerOutput."""

    finished_req_ids: set[str]
    preempted_req_ids: set[str] | None
    scheduled_new_reqs: list[Any]


@dataclass(frozen=True)
class BatchView:
    """One step's batch, the same for both runners; b requests, r rows of logits.

    starts: (b,) the position of each request's first row. query_start: (b + 1,) where its hidden
    states begin. slots: (b,) each request's index in ``row_slots``, which is (r,) int64 on the
    device and says whose row of logits each one is; slots are below ``num_slots``. read: where
    hidden states are in the KV cache, (i, n) gives the first n of the i-th request, (n, d); this
    step's are among them.
    """

    req_ids: Sequence[str]
    starts: np.ndarray
    query_start: np.ndarray
    slots: np.ndarray
    row_slots: Tensor
    num_slots: int
    read: Callable[[int, int], Tensor] | None = None


@dataclass
class Request:
    """external_id: what RequestOutput.request_id shows. row: its name in the table, which requests
    that share a delta share. shareable: whether its tokens say all about its prompt. epoch: of the
    weights when it came. seen: up to where its prompt was computed or read from the prefix cache.
    hidden: without a hidden-state cache, the (n, d) rows so far, of which the first ``filled`` are
    there, while the prompt is incomplete. spans: where the tokens stand that are learned from, if
    only admission can tell."""

    external_id: str
    params: SlotParams
    tokens: list[int]
    row: str
    lora_request: Any = None
    cache_salt: str | None = None
    shareable: bool = False
    epoch: tuple[int, int] = (0, 0)
    seen: int = 0
    hidden: Tensor | None = None
    filled: int = 0
    learned: Learned | None = None
    failed: bool = False
    spans: Sequence[Sequence[int]] | None = None

    @property
    def rounds(self) -> bool:
        """Whether delta is added to the hidden states, in the model's dtype."""
        return self.params.rounding == "model"


class Deltas:
    """State of one runner. All of it hangs on that runner; nothing is shared in the process."""

    def __init__(
        self, config: SlotConfig, linear_head: LinearHead, max_requests: int, device: torch.device
    ) -> None:
        self.config = config
        self.linear_head = linear_head
        head = linear_head.head()
        smallest = smallest_workspace_for_all(head)
        self.workspace_size = choose_size(config.workspace_mb, device)
        if self.workspace_size.bytes < smallest:
            raise SlotError(
                f"slot.workspace_mb={self.workspace_size.mb}: too small for a head of "
                f"{linear_head.describe()}; allowed: {-(-smallest // MIB)} or more"
            )
        # The kernels are compiled now: not in the first requests' time.
        library_for(head.weight)
        self.device = device
        self.workspace = Workspace(self.workspace_size.bytes, device)
        warm_up(head, self.workspace)
        self.table = DeltaTable(max_requests, head)
        self.pending = PendingRows(config.pending_mb * MIB, device)
        self.shared = DeltaCache(config.delta_cache_mb * MIB, head.hidden_size, device)
        self.requests: dict[str, Request] = {}
        self.bypassed: set[str] = set()
        self.kept: OrderedDict[str, tuple[str, Learned]] = OrderedDict()
        self.counters: Counter[str] = Counter()
        self.optimize_seconds = 0.0
        self.errors: deque[str] = deque(maxlen=16)
        # Counted on the device, so that no step waits for it.
        self._not_finite = torch.zeros((), dtype=torch.int64, device=device)
        self._scaled = torch.zeros((), dtype=torch.int64, device=device)
        self._vanished = torch.zeros((), dtype=torch.int64, device=device)
        self._warned_unresolved = False
        self._staged: Additions | None = None
        self._epoch = 0
        self._adapter_epochs: Counter[str] = Counter()

    def begin_step(self, scheduler_output: SchedulerOutput) -> None:
        """Departures, then arrivals: an id may be aborted and used again in the same step."""
        self._staged = None
        for req_id in scheduler_output.finished_req_ids:
            self._finish(req_id)
        for req_id in scheduler_output.preempted_req_ids or ():
            request = self.requests.get(req_id)
            if request is not None:
                # It starts again with its first token; others need the room until then.
                self._release(request)
                request.filled = request.seen = 0
        for new in scheduler_output.scheduled_new_reqs:
            # The V2 runner gets preempted requests as new ones when they resume.
            if new.req_id not in self.requests and new.req_id not in self.bypassed:
                self._arrive(new)

    def stage(self, hidden_states: Tensor, batch: BatchView) -> None:
        """Take the step's prompt rows, learn the deltas of the prompts that they complete, and
        hold ready what the step's logits get. hidden_states: (rows or more, d)."""
        self._staged = None
        if not self.requests:
            return
        completed: list[tuple[Request, Callable[[], Tensor]]] = []
        leaders: dict[bytes, Request] = {}
        followers: list[tuple[Request, Request]] = []
        for i, req_id in enumerate(batch.req_ids):
            request = self.requests.get(req_id)
            if request is None or request.learned is not None:
                continue
            try:
                rows = self._rows(request, hidden_states, batch, i)
                if rows is None:
                    continue
                key = self._key(request)
                if key is None:
                    completed.append((request, rows))
                elif key in leaders:
                    followers.append((request, leaders[key]))
                elif (learned := self._find_shared(key)) is not None:
                    self._share(request, learned)
                else:
                    completed.append((request, rows))
                    leaders[key] = request
            except Exception as error:
                self._fail(request, error)
        # Rows that are copied out of the KV cache have the room that pending ones would have.
        self._learn_all(completed, hidden_states[:1].nbytes if batch.read else 0)
        for request, leader in followers:
            if leader.learned is None or leader.failed:
                self._fail(request, RuntimeError(f"as for its equal, {leader.external_id}"))
            else:
                self._share(request, leader.learned)
        for key, leader in leaders.items():
            if leader.learned is not None and not leader.failed:
                self.shared.put(key, leader.learned)
        self._staged = self._additions(batch)

    def unstage(self) -> None:
        self._staged = None

    def take(self) -> Additions | None:
        """What was staged, once: later logits of the same step are prompt logprobs."""
        additions, self._staged = self._staged, None
        return additions

    def forget_shared(self) -> None:
        """From now on no request uses a delta that was learned before: the weights changed."""
        self._epoch += 1
        self.shared.clear()

    def forget_adapter(self, name: str) -> None:
        """The same for a LoRA adapter that is loaded in place of another."""
        self._adapter_epochs[name] += 1

    def _epoch_of(self, lora_request: Any) -> tuple[int, int]:
        adapter = 0 if lora_request is None else self._adapter_epochs[lora_request.lora_name]
        return self._epoch, adapter

    def find(self, request_id: str) -> Learned | None:
        """The delta of a request by the id that its output shows, if deltas are kept."""
        if not self.config.keep_deltas:
            return None
        for request in reversed(self.requests.values()):
            if request.external_id == request_id and request.learned and not request.failed:
                return request.learned
        for external_id, learned in reversed(self.kept.values()):
            if external_id == request_id:
                return learned
        return None

    @torch.inference_mode()
    def token_shifts(self, request_id: str) -> Tensor | None:
        """W delta, (V,) float32, of a request that ``find`` finds."""
        learned = self.find(request_id)
        if learned is None:
            return None
        head = self.linear_head.head()
        shifts = torch.empty(1, head.vocabulary, device=learned.delta.device)
        head.exact_shift(learned.delta.unsqueeze(0), out=shifts)
        return shifts[0] if learned.bias is None else shifts[0] + learned.bias

    def stats(self) -> dict[str, int | float]:
        names = (
            "optimized",
            "shared",
            "bypassed",
            "prompt_tokens",
            "hidden_rows_cached",
            "hidden_rows_computed",
        )
        return {
            **{name: self.counters[name] for name in names},
            "failed": self.counters["failed"] + int(self._not_finite),
            **{name: count for name, count in self.counters.items() if "." in name},
            "scaled": int(self._scaled),
            "vanished": int(self._vanished),
            "optimize_seconds": self.optimize_seconds,
            "requests": len(self.requests),
            "table_rows": len(self.table),
            "pending_device_bytes": self.pending.device_bytes,
            "pending_host_bytes": self.pending.host_bytes,
            "kept_deltas": len(self.kept),
            "shared_deltas": len(self.shared),
            "workspace_bytes": self.workspace.size,
        }

    def _arrive(self, new: Any) -> None:
        extra_args = getattr(new.sampling_params, "extra_args", None) or {}
        if RESOLVED not in extra_args:
            if new.sampling_params is not None and (self.config.steps or named(extra_args)):
                self._bypass(new.req_id, "unresolved")
                if not self._warned_unresolved:
                    self._warned_unresolved = True
                    logger.error("SLOT: requests reach the worker without admission")
            return
        resolved = read_resolved(extra_args[RESOLVED])
        if resolved.bypassed is not None:
            self._bypass(new.req_id, resolved.bypassed)
        elif resolved.params.steps:
            lora_request = new.lora_request
            replaces = lora_request is not None and lora_request.load_inplace
            if replaces:
                # vLLM loads it again for each request that says so.
                self.forget_adapter(lora_request.lora_name)
            self.requests[new.req_id] = Request(
                resolved.request_id,
                resolved.params,
                new.prompt_token_ids,
                row=new.req_id,
                lora_request=lora_request,
                cache_salt=resolved.cache_salt,
                # Admission lets neither pass; here their tokens would not tell them apart.
                shareable=not (replaces or new.mm_features or new.prompt_embeds is not None),
                epoch=self._epoch_of(lora_request),
                spans=resolved.spans,
            )

    def _bypass(self, req_id: str, reason: str) -> None:
        self.bypassed.add(req_id)
        self.counters["bypassed"] += 1
        self.counters[f"bypassed.{reason}"] += 1

    def _finish(self, req_id: str) -> None:
        self.bypassed.discard(req_id)
        request = self.requests.pop(req_id, None)
        if request is None:
            return
        if all(other.row != request.row for other in self.requests.values()):
            self.table.remove(request.row)
        self._release(request)
        if request.learned is not None and not request.failed and self.config.keep_deltas:
            self.kept[req_id] = (request.external_id, request.learned)
            self.kept.move_to_end(req_id)
            while len(self.kept) > self.config.keep_deltas:
                self.kept.popitem(last=False)

    def _release(self, request: Request) -> None:
        if request.hidden is not None:
            self.pending.release(request.hidden)
            request.hidden = None

    def _rows(
        self, request: Request, hidden_states: Tensor, batch: BatchView, i: int
    ) -> Callable[[], Tensor] | None:
        """A way to all rows of the prompt of the i-th request, if this step completes it."""
        length, start = len(request.tokens), int(batch.starts[i])
        first = int(batch.query_start[i])
        rows = hidden_states[first : int(batch.query_start[i + 1])][: length - start]
        stop = start + rows.shape[0]
        self.counters["hidden_rows_computed"] += rows.shape[0]
        read = batch.read
        if read is None:
            taken = self._take_rows(request, rows, start)
            return None if taken is None else lambda: taken
        # The V1 runner is not told of all preemptions; one that starts again may start at a hit.
        known = request.seen if start >= request.seen else 0
        self.counters["hidden_rows_cached"] += start - known
        request.seen = stop
        if stop < length:
            return None
        if start == 0:
            return lambda: rows
        self.pending.open()
        return lambda: read(i, length)

    def _key(self, request: Request) -> bytes | None:
        """What other requests must have in common with this one to use its delta."""
        # What was computed before weights changed and after is like no other prompt.
        mixed = request.epoch != self._epoch_of(request.lora_request)
        if not self.config.delta_cache_mb or not request.shareable or mixed:
            return None
        key = prompt_key(
            request.tokens, request.params, request.lora_request, request.cache_salt, request.epoch
        )
        request.row = key.hex()
        return key

    def _find_shared(self, key: bytes) -> Learned | None:
        learned = self.shared.get(key)
        if learned is not None:
            return learned
        row = key.hex()
        alive = (q.learned for q in self.requests.values() if q.row == row and not q.failed)
        return next((learned for learned in alive if learned is not None), None)

    def _share(self, request: Request, learned: Learned) -> None:
        request.learned = learned
        self._not_finite += ~learned.finite
        self._release(request)
        self.counters["shared"] += len(request.tokens) > 1

    def _take_rows(self, request: Request, rows: Tensor, start: int) -> Tensor | None:
        """Keep the prompt's part of this step's rows; all its rows once they are complete."""
        length = len(request.tokens)
        stop = start + rows.shape[0]
        if start > request.filled:
            raise RuntimeError(
                f"request {request.external_id}: hidden states {request.filled} to {start} of the "
                "prompt never came; was its prefix read from a cache?"
            )
        if start == 0 and stop == length:
            self._release(request)
            return rows
        if request.hidden is None:
            request.hidden = self.pending.allocate(length, rows.shape[1], rows.dtype)
        request.hidden[start:stop].copy_(rows)
        # vLLM promises the names of preempted requests to the V2 runner only: one that starts again
        # unannounced overwrites equal rows.
        request.filled = max(request.filled, stop)
        return request.hidden if request.filled == length else None

    def _learn_all(
        self, completed: list[tuple[Request, Callable[[], Tensor]]], row_bytes: int
    ) -> None:
        group: list[tuple[Request, Tensor]] = []
        room = self.pending.limit
        for request, rows in completed:
            room -= len(request.tokens) * row_bytes
            if group and room < 0:
                self._learn(group)
                group, room = [], self.pending.limit - len(request.tokens) * row_bytes
            try:
                group.append((request, rows()))
            except Exception as error:
                self._fail(request, error)
        if group:
            self._learn(group)

    def _learn(self, completed: list[tuple[Request, Tensor]]) -> None:
        began = time.perf_counter()
        try:
            learned = self._optimize(completed)
        except Exception as error:
            # One bad prompt must cost neither the engine nor its neighbours' deltas.
            if len(completed) > 1:
                for one in completed:
                    self._learn([one])
                return
            self._fail(completed[0][0], error)
        else:
            for (request, _), result in zip(completed, learned, strict=True):
                request.learned = result
                self._not_finite += ~result.finite
                self._scaled += (result.scale > 0) & (result.scale < 1)
                self._vanished += result.scale == 0
                self._release(request)
            self.counters["optimized"] += sum(len(r.tokens) > 1 for r, _ in completed)
            self.counters["prompt_tokens"] += sum(len(r.tokens) for r, _ in completed)
        self.optimize_seconds += time.perf_counter() - began

    def _optimize(self, completed: list[tuple[Request, Tensor]]) -> list[Learned]:
        head = self.linear_head.head()
        for request, _ in completed:
            # On a GPU such an index would take the process down.
            if max(request.tokens) >= head.vocabulary:
                raise ValueError(f"token {max(request.tokens)} is not in the head's vocabulary")
        prompts = [
            Prompt(
                rows.to(self.device, non_blocking=True),
                to_device(request.tokens, torch.int64, self.device),
                request.params,
                None if request.spans is None else flags(request.spans, len(request.tokens)),
            )
            for request, rows in completed
        ]
        return optimize(head, prompts, self.workspace, final_loss=self.config.report_loss)

    def _fail(self, request: Request, error: Exception) -> None:
        """The request goes on without a delta."""
        self.errors.append("".join(traceback.format_exception(error)))
        self.counters["failed"] += 1
        logger.error("SLOT failed for request %s: %s", request.external_id, error)
        request.failed = True
        zeros = torch.zeros(self.table.rounded.shape[1], device=self.device)
        request.learned = Learned(zeros, zeros[:0], torch.zeros((), dtype=torch.bool))
        self._release(request)

    def _additions(self, batch: BatchView) -> Additions | None:
        adapted: list[tuple[int, Request]] = []
        for slot, req_id in zip(batch.slots, batch.req_ids, strict=True):
            request = self.requests.get(req_id)
            if request is not None and request.learned and request.learned.losses.numel():
                adapted.append((int(slot), request))
        if not adapted:
            return None
        here = {q.row: q for _, q in adapted}
        new = {row: q for row, q in here.items() if self.table.row(row) is None}
        if new:
            try:
                self.table.fill(
                    [self.table.assign(row, here) for row in new],
                    torch.stack([q.learned.delta for q in new.values() if q.learned]),
                    [q.rounds for q in new.values()],
                    self.linear_head.head(),
                    [q.learned.bias for q in new.values() if q.learned],
                )
            except Exception:
                # Else an equal prompt would take what the row held before for its own.
                for row in new:
                    self.table.remove(row)
                raise
        lookup = [0] * batch.num_slots
        for slot, request in adapted:
            lookup[slot] = self.table.row(request.row) or 0
        return Additions(
            self.table.effective[to_device(lookup, torch.int64, self.device)[batch.row_slots]],
            self.table.biases if any(not q.rounds for q in here.values()) else None,
            self.table.rounded if any(q.rounds for q in here.values()) else None,
        )
