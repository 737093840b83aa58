"""The deltas of one model runner: born when a prompt is complete, gone with their request."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from slot_vllm.engine.wire.histogram import HistogramSnapshot
from slot_vllm.engine.wire.prompt_key import prompt_key
from slot_vllm.engine.wire.receipt_dict import ReceiptDict
from slot_vllm.engine.wire.resolved import RESOLVED, read_admitted
from slot_vllm.engine.worker.batch import BatchView, SchedulerOutput
from slot_vllm.engine.worker.delta_cache import DeltaCache
from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.engine.worker.device_counts import DeviceCounts
from slot_vllm.engine.worker.fading import fading
from slot_vllm.engine.worker.failures import REASONS, Failure, Failures
from slot_vllm.engine.worker.last_finished import LastFinished
from slot_vllm.engine.worker.linear_head import Additions, LinearHead
from slot_vllm.engine.worker.loss_drops import LossDrops
from slot_vllm.engine.worker.pending import PendingRows
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.ranks import ALONE, Ranks
from slot_vllm.engine.worker.receipts import Receipts
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.engine.worker.step_timer import StepTimer
from slot_vllm.kernels.compiled import library_for
from slot_vllm.kernels.device import to_device
from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.optimize import Learned, Prompt, optimize
from slot_vllm.optim.shard import CollectiveFailed, OtherRankFailed
from slot_vllm.optim.warm_up import warm_up
from slot_vllm.optim.workspace import Workspace, choose_size
from slot_vllm.params import SlotConfig, SlotError, SlotParams, named

logger = logging.getLogger("vllm.slot_vllm")

MIB = 1 << 20


class Deltas:
    """State of one runner. All of it hangs on that runner; nothing is shared in the process.

    Under tensor parallelism every rank has one, for its columns of the vocabulary, and all take the
    same decisions: from what the scheduler says, from sizes that are the same on all, and where
    something may fail on one alone, from what ``ranks`` agree on.
    """

    def __init__(
        self,
        config: SlotConfig,
        linear_head: LinearHead,
        max_requests: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.linear_head = linear_head
        self.ranks = ranks
        head = linear_head.head()
        self._shard = linear_head.shard() if ranks.size > 1 else None
        smallest = smallest_workspace(head, self._shard)
        self.workspace_size = choose_size(config.workspace_mb, device)
        # What is free on the devices differs.
        self.workspace_size = replace(
            self.workspace_size, mb=ranks.smallest(self.workspace_size.mb)
        )
        if self.workspace_size.bytes < smallest:
            raise SlotError(
                f"slot.workspace_mb={self.workspace_size.mb}: too small for a head of "
                f"{linear_head.describe()}; allowed: {-(-smallest // MIB)} or more"
            )
        # The kernels are compiled now: not in the first requests' time.
        library_for(head.weight)
        self.device = device
        self.workspace = Workspace(self.workspace_size.bytes, device)
        warm_up(head, self.workspace, self._shard)
        self.table = DeltaTable(max_requests, head)
        self.pending = PendingRows(config.pending_mb * MIB, device)
        self.shared = DeltaCache(
            config.delta_cache_mb * MIB, head.hidden_size, device, waits=ranks.size > 1
        )
        self.requests: dict[str, SlotRequest] = {}
        self.bypassed: set[str] = set()
        self.plain: set[str] = set()
        self.kept: LastFinished[tuple[str, Learned]] = LastFinished(config.keep_deltas)
        self.receipts = Receipts(config.receipts)
        self.counters: Counter[str] = Counter()
        self.rows = PromptRows(self.pending, self.counters)
        self.optimize_seconds = 0.0
        self.step_timer = StepTimer(device)
        self.loss_drops = LossDrops(device)
        self.failures = Failures(self.counters, ranks)
        self.errors = self.failures.errors
        self._device_counts = DeviceCounts(
            ("non_finite.optimized", "non_finite.shared", "loss_rose"), device
        )
        zeros = torch.zeros(head.hidden_size, device=device)
        no = torch.zeros((), dtype=torch.bool, device=device)
        self._nothing = Learned(zeros, zeros[:0], no)
        self._warned_unresolved = False
        # False while vLLM warms up with requests of its own.
        self.serving = True
        # In the current step.
        self._scheduled: Collection[str] = ()
        self._adapted: list[SlotRequest] = []
        self._staged: Additions | None = None
        self._epoch = 0
        self._adapter_epochs: Counter[str] = Counter()

    def begin_step(self, scheduler_output: SchedulerOutput) -> None:
        """Departures, then arrivals: an id may be aborted and used again in the same step."""
        if not self.serving:
            return
        self._staged = self.rows.not_written = None
        self._adapted = []
        # Before anything else that may fail: vLLM names them once. Sorted: a set's order differs
        # among processes, and the oldest kept deltas go first.
        self._finish_all(scheduler_output.finished_req_ids)
        self._scheduled = scheduler_output.num_scheduled_tokens
        self._without_failing(self._log_not_finite)
        for req_id in scheduler_output.preempted_req_ids or ():
            request = self.requests.get(req_id)
            if request is not None:
                # The ranks agree on it when its prompt goes on.
                with request.containing("hidden_cache"):
                    self.rows.restart(request)
        arrived: list[Any] = []
        failed: list[Failure | None] = []
        for new in scheduler_output.scheduled_new_reqs:
            # The V2 runner gets preempted requests as new ones when they resume.
            if self._knows(new.req_id):
                continue
            arrived.append(new)
            failed.append(None)
            try:
                self._arrive(new)
            except Exception as error:
                failed[-1] = Failure.of(error, "arrival")
        for new, failure in zip(arrived, self.failures.agreed(failed), strict=True):
            if failure is not None:
                self._fail_arrival(new, failure)

    def _knows(self, req_id: str) -> bool:
        return any(req_id in known for known in (self.requests, self.bypassed, self.plain))

    def give_up(self, failure: Failure, scheduler_output: Any) -> None:
        """It is not known who comes and goes in a step, on any rank: what all have in common could
        not be read. No request gets a delta any more, neither those that are here nor the step's
        arrivals."""
        self._staged = None
        self.failures.report(failure, "the step goes on without SLOT")
        self._finish_all(getattr(scheduler_output, "finished_req_ids", ()))
        for new in getattr(scheduler_output, "scheduled_new_reqs", ()):
            if self._knows(new.req_id):
                continue
            try:
                self._arrive(new)
            except Exception:
                self._fail_arrival(new, failure)
        self._fail_all(list(self.requests.values()), failure)

    def attempt(self, work: Callable[[], Tensor]) -> Tensor | None:
        """What ``work``, which exchanges nothing, gives to the step's logits. If it raises on any
        rank, None on all, and the requests whose deltas were staged go on without."""
        found, failure = None, None
        try:
            found = work()
        except Exception as error:
            failure = Failure.of(error, "logits")
        (failure,) = self.failures.agreed([failure])
        if failure is None:
            return found
        self.failures.report(failure, "the step goes on without SLOT")
        self._fail_all(self._adapted, failure)
        return None

    def _without_failing(self, tell: Callable[[], None]) -> None:
        """Do what is for people alone."""
        try:
            tell()
        except Exception as error:
            self.failures.report(Failure.of(error, "batch"), "a log or a metric lacks something")

    def _fail_all(self, requests: Sequence[SlotRequest], failure: Failure) -> None:
        for request in requests:
            if not request.failed:
                self._fail(request, failure)

    def not_written(self, failure: Failure) -> None:
        """The step's hidden states did not get into the KV cache: who must read them there, now or
        later in its prompt, has none."""
        self.rows.not_written = failure
        self.failures.report(
            failure, "until reset_prefix_cache, what hits the step's blocks gets no delta"
        )

    def stage(self, hidden_states: Tensor, view: Callable[[], BatchView]) -> None:
        """Take the step's prompt rows, learn the deltas of the prompts that they complete, and
        hold ready what the step's logits get. hidden_states: (rows or more, d). If ``view`` raises
        on any rank, the step's requests go on without a delta."""
        self._staged = None
        if not self.requests:
            return
        batch, failure = None, None
        try:
            batch = view()
        except Exception as error:
            failure = Failure.of(error, "batch")
        (failure,) = self.failures.agreed([failure])
        if batch is not None and failure is None:
            try:
                self._stage(hidden_states, batch)
                return
            except Exception as error:
                if self.ranks.size > 1:
                    # The others are somewhere in what the ranks do together: an engine that ends
                    # is better than one that waits for ever.
                    raise
                failure = Failure.of(error, "batch")
        assert failure is not None
        self._staged = None
        self.failures.report(failure, "the step goes on without SLOT")
        here = [q for name, q in self.requests.items() if name in self._scheduled]
        self._fail_all(here, failure)

    def _stage(self, hidden_states: Tensor, batch: BatchView) -> None:
        prefilling: list[SlotRequest] = []
        ready: list[tuple[SlotRequest, Callable[[], Tensor], bytes | None]] = []
        for i, req_id in enumerate(batch.req_ids):
            request = self.requests.get(req_id)
            if request is None or request.learned is not None:
                continue
            prefilling.append(request)
            with request.containing("hidden_cache"):
                rows = self.rows.take(request, hidden_states, batch, i)
                if rows is not None:
                    ready.append((request, rows, self._key(request)))
        self._settle(prefilling)
        ready = [one for one in ready if not one[0].failed]
        known: dict[str, Learned] = {}
        for request, _, key in ready:
            with request.containing("table"):
                found = None if key is None else self._find_shared(key)
                if found is not None:
                    known[request.row] = found
        # Who leads, and so what the ranks do together, depends on it.
        self._settle([request for request, _, _ in ready])
        completed: list[tuple[SlotRequest, Callable[[], Tensor]]] = []
        leaders: dict[bytes, SlotRequest] = {}
        followers: list[tuple[SlotRequest, SlotRequest]] = []
        shared: list[SlotRequest] = []
        for request, rows, key in ready:
            if request.failed:
                continue
            if key is None:
                completed.append((request, rows))
            elif key in leaders:
                followers.append((request, leaders[key]))
            elif request.row in known:
                request.learned = known[request.row]
                shared.append(request)
            else:
                completed.append((request, rows))
                leaders[key] = request
        # Rows that are copied out of the KV cache have the room that pending ones would have.
        if completed:
            with self.step_timer.step(len(completed)) as learning:
                self._learn_all(completed, hidden_states[:1].nbytes if batch.read else 0)
            for request, _ in completed:
                request.learning = learning
        for request, leader in followers:
            if leader.failure is not None:
                self._fail(request, leader.failure)
            else:
                request.learned = leader.learned
                shared.append(request)
        for request in shared:
            request.shares = True
            self.rows.release(request)
        self._staged = self._additions(batch)
        self._share(leaders)
        self._count("optimized", [request for request, _ in completed])
        self._count("shared", shared)

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
            if request.external_id == request_id and request.learned is not None:
                return request.learned if request.learned.finite else None
        for external_id, learned in reversed(self.kept.values()):
            if external_id == request_id:
                return learned if learned.finite else None
        return None

    def receipt(self, request_id: str) -> ReceiptDict | None:
        """By the id that its output shows, if receipts are kept. Waits for the device."""
        found = self.receipts.find(request_id, self.requests.values())
        return None if found is None else found.read()

    def receipts_of(self, response_ids: Collection[str]) -> dict[str, list[ReceiptDict]]:
        """The same of the prompts of a server's responses."""
        found = self.receipts.of_responses(response_ids, self.requests.values())
        return {name: [one.read() for one in own] for name, own in found.items()}

    @torch.inference_mode()
    def token_shifts(self, request_id: str) -> Tensor | None:
        """W delta, (V,) float32, of a request that ``find`` finds. All ranks call it."""
        learned = self.find(request_id)
        if learned is None:
            return None
        head = self.linear_head.head()
        shifts = torch.empty(1, head.vocabulary, device=learned.delta.device)
        self.ranks.together(lambda: head.exact_shift(learned.delta.unsqueeze(0), out=shifts))
        return self.linear_head.whole(shifts)[0]

    def stats(self) -> dict[str, int | float]:
        """Waits for the device."""
        self._log_not_finite()
        not_finite = {
            name: self._device_counts.read(f"non_finite.{name}") for name in ("optimized", "shared")
        }
        names = (
            "one_token",
            "bypassed",
            "plain",
            "aborted",
            "ranks_differ",
            "prompt_tokens",
            "hidden_rows_cached",
            "hidden_rows_computed",
        )
        failed = {f"failed.{reason}": self.counters[f"failed.{reason}"] for reason in REASONS}
        failed["failed.non_finite"] += sum(not_finite.values())
        return {
            **{name: self.counters[name] - lost for name, lost in not_finite.items()},
            **{name: self.counters[name] for name in names},
            "failed": sum(failed.values()),
            **{name: count for name, count in self.counters.items() if "." in name},
            **failed,
            "loss_rose": self._device_counts.read("loss_rose"),
            # Nothing scales a delta any more; who reads them finds them.
            "scaled": 0,
            "vanished": 0,
            "optimize_seconds": self.optimize_seconds,
            "requests": len(self.requests),
            "table_rows": len(self.table),
            "pending_device_bytes": self.pending.device_bytes,
            "pending_host_bytes": self.pending.host_bytes,
            "kept_deltas": len(self.kept),
            "shared_deltas": len(self.shared),
            "workspace_bytes": self.workspace.size,
        }

    def histograms(self) -> dict[str, HistogramSnapshot]:
        """optimize_seconds: per engine step that learns. loss_drop: per prompt learned from."""
        return {
            "optimize_seconds": self.step_timer.snapshot(),
            "loss_drop": self.loss_drops.snapshot(),
        }

    def _arrive(self, new: Any) -> None:
        lora_request = new.lora_request
        replaces = lora_request is not None and lora_request.load_inplace
        if replaces:
            # vLLM loads it again for each request that says so, whether that has SLOT or not.
            self.forget_adapter(lora_request.lora_name)
        extra_args = getattr(new.sampling_params, "extra_args", None) or {}
        if RESOLVED not in extra_args:
            if new.sampling_params is not None and (self.config.steps or named(extra_args)):
                self._bypass(new, "unresolved")
                if not self._warned_unresolved:
                    self._warned_unresolved = True
                    logger.error("SLOT: requests reach the worker without admission")
            else:
                self._leave_plain(new)
            return
        resolved = read_admitted(extra_args[RESOLVED])
        if not resolved.counted:
            # Its search was counted with its first step.
            self.plain.add(new.req_id)
        elif resolved.bypassed is not None:
            self._bypass(new, resolved.bypassed, resolved.params)
        elif resolved.params.steps:
            self.requests[new.req_id] = SlotRequest(
                resolved.request_id,
                resolved.params,
                new.prompt_token_ids,
                row=new.req_id,
                skipped=self.config.skipped(len(new.prompt_token_ids)),
                lora_request=lora_request,
                cache_salt=resolved.cache_salt,
                # Admission lets neither pass; here their tokens would not tell them apart.
                shareable=not (replaces or new.mm_features or new.prompt_embeds is not None),
                epoch=self._epoch_of(lora_request),
                spans=resolved.spans,
            )
        else:
            self._leave_plain(new)

    def _leave_plain(self, new: Any) -> None:
        self.plain.add(new.req_id)
        self.counters["plain"] += 1
        self.receipts.without(new, "plain")

    def _bypass(self, new: Any, reason: str, params: SlotParams | None = None) -> None:
        self.bypassed.add(new.req_id)
        self.counters["bypassed"] += 1
        self.counters[f"bypassed.{reason}"] += 1
        self.receipts.without(new, "bypassed", reason, params)

    def _fail_arrival(self, new: Any, failure: Failure) -> None:
        self.requests.pop(new.req_id, None)
        self.bypassed.add(new.req_id)
        self.failures.count(failure, new.req_id)
        self.receipts.without(new, "failed", failure.reason)

    def _finish_all(self, req_ids: Collection[str]) -> None:
        for req_id in sorted(req_ids):
            try:
                self._finish(req_id)
            except Exception as error:
                self.failures.count(Failure.of(error, "departure"), req_id)

    def _finish(self, req_id: str) -> None:
        self.bypassed.discard(req_id)
        self.plain.discard(req_id)
        request = self.requests.pop(req_id, None)
        if request is None:
            self.receipts.finish(req_id, None)
            return
        # First: which rows are free, the ranks must not see differently.
        if all(other.row != request.row for other in self.requests.values()):
            self.table.remove(request.row)
        if request.learned is None:
            self.counters["aborted"] += 1
        elif not request.failed:
            self.kept.put(req_id, (request.external_id, request.learned))
        self.rows.release(request)
        self.receipts.finish(req_id, request)

    def _key(self, request: SlotRequest) -> bytes | None:
        """What other requests must have in common with this one to use its delta."""
        # What was computed before weights changed and after is like no other prompt.
        mixed = request.epoch != self._epoch_of(request.lora_request)
        if not self.config.delta_cache_mb or not request.shareable or mixed:
            return None
        key = prompt_key(
            request.tokens,
            request.skipped,
            request.params,
            request.lora_request,
            request.cache_salt,
            request.epoch,
        )
        request.row = key.hex()
        return key

    def _find_shared(self, key: bytes) -> Learned | None:
        learned = self.shared.get(key)
        if learned is not None:
            return learned
        row = key.hex()
        for q in self.requests.values():
            if q.row == row and q.learned is not None and q.learned is not self._nothing:
                learned = q.learned
                # As in ``DeltaCache``: ranks must not know it at different times.
                if not learned.known_not_finite(waits=self.ranks.size > 1):
                    return learned
                # It is counted, and its delta is zero: the row is for one that is learned anew.
                q.learned = self._nothing
                self.table.remove(row)
        return None

    def _share(self, leaders: dict[bytes, SlotRequest]) -> None:
        for key, leader in leaders.items():
            if leader.learned is None or leader.failed:
                continue
            try:
                self.shared.put(key, leader.learned)
            except Exception as error:
                self.failures.report(Failure.of(error, "table"), "a delta is not shared")

    def _count(self, outcome: str, requests: Sequence[SlotRequest]) -> None:
        """Of the requests that got a delta in this step. One token is nothing to learn from."""
        given = [q.learned for q in requests if q.learned and not q.failed]
        learned = [x for x in given if x.losses.numel()]
        self.counters["one_token"] += len(given) - len(learned)
        if not learned:
            return
        self.counters[outcome] += len(learned)
        self._device_counts.add(f"non_finite.{outcome}", [~x.finite for x in learned])
        if outcome == "optimized" and self.config.final_loss:
            rose = [x.finite & (x.losses[-1] > x.losses[0]) for x in learned]
            self._device_counts.add("loss_rose", rose)

    def _log_not_finite(self) -> None:
        if any(self._device_counts.arrived(f"non_finite.{x}") for x in ("optimized", "shared")):
            message = "a loss, hidden state or delta is not finite; its request has no delta"
            self.failures.log("non_finite", message)

    def _learn_all(
        self, completed: list[tuple[SlotRequest, Callable[[], Tensor]]], row_bytes: int
    ) -> None:
        group: list[tuple[SlotRequest, Callable[[], Tensor]]] = []
        room = self.pending.limit
        for request, rows in completed:
            if request.failed:
                continue
            needed = len(request.learns_from) * row_bytes
            room -= needed
            if group and room < 0:
                self._learn(group)
                group, room = [], self.pending.limit - needed
            group.append((request, rows))
        if group:
            self._learn(group)

    def _learn(self, completed: list[tuple[SlotRequest, Callable[[], Tensor]]]) -> None:
        """All ranks have the same requests, and their hidden states or their failures."""
        began = time.perf_counter()
        read: list[tuple[SlotRequest, Tensor]] = []
        for request, rows in completed:
            with request.containing("vocabulary"):
                self._check_tokens(request)
            if not request.failed:
                with request.containing("hidden_cache"):
                    own = rows()
                    self._make_room_for_whole(own)
                    read.append((request, own))
        self._settle([request for request, _ in completed])
        prompts: list[tuple[SlotRequest, Prompt]] = []
        whole = [(q, self._whole(rows)) for q, rows in read if not q.failed]
        for request, hidden in whole:
            with request.containing("hidden_cache"):
                prompts.append((request, self._prompt(request, hidden)))
        self._settle([request for request, _ in whole])
        self._optimize([(q, prompt) for q, prompt in prompts if not q.failed])
        self.optimize_seconds += time.perf_counter() - began

    def _check_tokens(self, request: SlotRequest) -> None:
        # On a GPU such an index would take the process down.
        if (largest := max(request.learns_from)) >= self.linear_head.vocabulary:
            raise ValueError(f"token {largest} is not in the head's vocabulary")

    def _whole(self, rows: Tensor) -> Tensor:
        """(n, d) from this rank's slice of it, where the KV cache has only that."""
        return rows if self._is_whole(rows) else self.ranks.gather_columns(rows)

    def _is_whole(self, rows: Tensor) -> bool:
        return rows.shape[1] == self.table.rounded.shape[1]

    def _make_room_for_whole(self, rows: Tensor) -> None:
        """Where a rank has no memory for it, it must say so before the ranks gather. What torch
        allocated once it keeps."""
        if not self._is_whole(rows):
            rows.new_empty(2, self.ranks.size, *rows.shape)

    def _check_ranks(self, learned: list[Learned]) -> None:
        digest = hashlib.sha256()

        def read() -> None:
            for one in learned:
                digest.update(one.delta.cpu().numpy().tobytes())

        self.ranks.together(read)
        if not self.ranks.same(digest.digest()[:8]):
            self.counters["ranks_differ"] += 1
            raise RuntimeError(
                "check_ranks: the tensor-parallel ranks learned different deltas; "
                f"rank {self.ranks.rank} has {digest.hexdigest()}"
            )

    def _prompt(self, request: SlotRequest, rows: Tensor) -> Prompt:
        return Prompt(
            rows.to(self.device, non_blocking=True),
            to_device(request.learns_from, torch.int64, self.device),
            request.params,
            request.counts,
        )

    def _optimize(self, prompts: list[tuple[SlotRequest, Prompt]]) -> None:
        if not prompts:
            return
        learned: list[Learned] = []
        failure = None
        try:
            learned = optimize(
                self.linear_head.head(),
                [prompt for _, prompt in prompts],
                self.workspace,
                final_loss=self.config.final_loss,
                shard=self._shard,
                with_last_kl=self.config.receipts > 0,
            )
            if self.config.check_ranks:
                self._check_ranks(learned)
        except OtherRankFailed:
            pass
        except CollectiveFailed:
            raise
        except Exception as error:
            failure = Failure.of(error, "optimizer")
        (failure,) = self.failures.agreed([failure])
        if failure is None:
            for (request, _), result in zip(prompts, learned, strict=True):
                request.learned = result
                self.rows.release(request)
                self.counters["prompt_tokens"] += len(request.learns_from)
            losses = [result.losses for result in learned]
            self._without_failing(lambda: self.loss_drops.observe(losses))
        elif len(prompts) == 1:
            self._fail(prompts[0][0], failure)
        else:
            # One bad prompt must cost neither the engine nor its neighbours' deltas.
            for one in prompts:
                self._optimize([one])

    def _settle(self, requests: Sequence[SlotRequest]) -> None:
        """Those of ``requests`` in which something failed by now go on without a delta."""
        failures = self.failures.agreed([request.failure for request in requests])
        for request, failure in zip(requests, failures, strict=True):
            if failure is not None:
                self._fail(request, failure)

    def _fail(self, request: SlotRequest, failure: Failure) -> None:
        """The request goes on without a delta."""
        self.failures.count(failure, request.external_id)
        request.failure = failure
        request.learned = self._nothing
        self.rows.release(request)

    def _additions(self, batch: BatchView) -> Additions | None:
        adapted: list[tuple[int, SlotRequest]] = []
        for slot, req_id in zip(batch.slots, batch.req_ids, strict=True):
            request = self.requests.get(req_id)
            if request is not None and request.learned and request.learned.losses.numel():
                adapted.append((int(slot), request))
        if not adapted:
            return None
        here = {q.row: q for _, q in adapted}
        self._fill([q for q in here.values() if self.table.row(q.row) is None], here)
        adapted = [(slot, q) for slot, q in adapted if not q.failed]
        lookup = [0] * batch.num_slots
        for slot, request in adapted:
            lookup[slot] = self.table.row(request.row) or 0
        self._adapted = [q for _, q in adapted]

        def look_up() -> Tensor:
            rows = to_device(lookup, torch.int64, self.device)[batch.row_slots]
            return self.table.effective[rows]

        return Additions(
            look_up,
            self.table.biases if any(not q.rounds for q in self._adapted) else None,
            self.table.rounded if any(q.rounds for q in self._adapted) else None,
            fading(adapted, batch, self.device),
        )

    def _finite_everywhere(self, rows: Sequence[str], finite: Sequence[Tensor]) -> list[Tensor]:
        """A row is zero on all ranks if its part of W delta is not finite on one."""
        together = (self.ranks.gather(torch.stack(list(finite)).float()) > 0).all(dim=0)
        places = [row for row in map(self.table.row, rows) if row is not None]
        for row, ok in zip(places, together, strict=True):
            self.table.biases[row].mul_(ok)
            self.table.rounded[row].mul_(ok)
            self.table.effective[row].mul_(ok)
        return list(together)

    def _fill(self, requests: Sequence[SlotRequest], here: Collection[str]) -> None:
        """Give the requests, each with another row, their rows; ``here``: the step's rows."""
        deltas = [(q, q.learned) for q in requests if q.learned]
        if not deltas:
            return
        finite: Sequence[Tensor] = ()
        failure = None
        try:
            finite = self.table.fill(
                [self.table.assign(q.row, here) for q, _ in deltas],
                torch.stack([learned.delta for _, learned in deltas]),
                [q.rounds for q, _ in deltas],
                self.linear_head.head(),
            )
        except Exception as error:
            failure = Failure.of(error, "table")
        (failure,) = self.failures.agreed([failure])
        if failure is None:
            if self.ranks.size > 1:
                finite = self._finite_everywhere([q.row for q, _ in deltas], finite)
            for (_, learned), ok in zip(deltas, finite, strict=True):
                learned.finite.logical_and_(ok)
            return
        for q, _ in deltas:
            # Else an equal prompt would take what the row held before for its own.
            self.table.remove(q.row)
        if len(deltas) > 1:
            for q, _ in deltas:
                self._fill([q], here)
            return
        row = deltas[0][0].row
        for q in self.requests.values():
            if q.row == row and q.learned is not None and not q.failed:
                self._fail(q, failure)
