"""The deltas of one model runner: born when a prompt is complete, gone with their request."""

import logging
import time
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from slot_vllm.engine.admission import RESOLVED, read_resolved
from slot_vllm.engine.delta_table import DeltaTable
from slot_vllm.engine.linear_head import Additions, LinearHead
from slot_vllm.engine.pending import PendingRows
from slot_vllm.kernels.compiled import library_for
from slot_vllm.optim.optimize import Learned, Prompt, optimize, smallest_workspace, to_device
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
    device and says whose row of logits each one is; slots are below ``num_slots``.
    """

    req_ids: Sequence[str]
    starts: np.ndarray
    query_start: np.ndarray
    slots: np.ndarray
    row_slots: Tensor
    num_slots: int


@dataclass
class Request:
    """external_id: what RequestOutput.request_id shows. hidden: the (n, d) rows so far, of which
    the first ``filled`` are there, while the prompt is incomplete."""

    external_id: str
    params: SlotParams
    tokens: list[int]
    hidden: Tensor | None = None
    filled: int = 0
    learned: Learned | None = None
    failed: bool = False

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
        smallest = smallest_workspace(head)
        self.workspace_size = choose_size(config.workspace_mb, device)
        if self.workspace_size.bytes < smallest:
            raise SlotError(
                f"slot.workspace_mb={self.workspace_size.mb}: too small for a head of "
                f"{linear_head.describe()}; allowed: {-(-smallest // MIB)} or more"
            )
        # Compiled now, where they are compiled at all: not in the first request's time.
        library_for(head.weight)
        self.device = device
        self.workspace = Workspace(self.workspace_size.bytes, device)
        self.table = DeltaTable(max_requests, head)
        self.pending = PendingRows(config.pending_mb * MIB, device)
        self.requests: dict[str, Request] = {}
        self.bypassed: set[str] = set()
        self.kept: OrderedDict[str, tuple[str, Learned]] = OrderedDict()
        self.counters: Counter[str] = Counter()
        self.optimize_seconds = 0.0
        self.errors: deque[str] = deque(maxlen=16)
        # Counted on the device, so that no step waits for it.
        self._not_finite = torch.zeros((), dtype=torch.int64, device=device)
        self._warned_unresolved = False
        self._staged: Additions | None = None

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
                request.filled = 0
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
        completed: list[tuple[Request, Tensor]] = []
        for i, req_id in enumerate(batch.req_ids):
            request = self.requests.get(req_id)
            if request is not None and request.learned is None:
                first, last = int(batch.query_start[i]), int(batch.query_start[i + 1])
                try:
                    rows = self._take_rows(request, hidden_states[first:last], int(batch.starts[i]))
                except Exception as error:
                    self._fail(request, error)
                else:
                    if rows is not None:
                        completed.append((request, rows))
        if completed:
            self._learn(completed)
        self._staged = self._additions(batch)

    def unstage(self) -> None:
        self._staged = None

    def take(self) -> Additions | None:
        """What was staged, once: later logits of the same step are prompt logprobs."""
        additions, self._staged = self._staged, None
        return additions

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
        return shifts[0]

    def stats(self) -> dict[str, int | float]:
        names = ("optimized", "shared", "bypassed", "prompt_tokens")
        return {
            **{name: self.counters[name] for name in names},
            "failed": self.counters["failed"] + int(self._not_finite),
            **{name: count for name, count in self.counters.items() if "." in name},
            "optimize_seconds": self.optimize_seconds,
            "requests": len(self.requests),
            "table_rows": len(self.table),
            "pending_device_bytes": self.pending.device_bytes,
            "pending_host_bytes": self.pending.host_bytes,
            "kept_deltas": len(self.kept),
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
            self.requests[new.req_id] = Request(
                resolved.request_id, resolved.params, new.prompt_token_ids
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
        self.table.remove(req_id)
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

    def _take_rows(self, request: Request, rows: Tensor, start: int) -> Tensor | None:
        """Keep the prompt's part of this step's rows; all its rows once they are complete."""
        length = len(request.tokens)
        rows = rows[: length - start]
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
        adapted: list[tuple[int, str, Request]] = []
        for slot, req_id in zip(batch.slots, batch.req_ids, strict=True):
            request = self.requests.get(req_id)
            if request is not None and request.learned and request.learned.losses.numel():
                adapted.append((int(slot), req_id, request))
        if not adapted:
            return None
        new = [(req_id, q) for _, req_id, q in adapted if self.table.row(req_id) is None]
        if new:
            here = set(batch.req_ids)
            self.table.fill(
                [self.table.assign(req_id, here) for req_id, _ in new],
                torch.stack([q.learned.delta for _, q in new if q.learned]),
                [q.rounds for _, q in new],
                self.linear_head.head(),
            )
        lookup = [0] * batch.num_slots
        for slot, req_id, _ in adapted:
            lookup[slot] = self.table.row(req_id) or 0
        return Additions(
            to_device(lookup, torch.int64, self.device)[batch.row_slots],
            self.table.biases if any(not q.rounds for _, _, q in adapted) else None,
            self.table.rounded if any(q.rounds for _, _, q in adapted) else None,
        )
