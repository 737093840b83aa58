"""One engine step on a model runner: batch, prompts, learning, table, logits."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from slot_vllm.engine.worker.additions import Additions, additions_for
from slot_vllm.engine.worker.batch import BatchView
from slot_vllm.engine.worker.failure import Failure
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.learning import CompletePrompt, Learner
from slot_vllm.engine.worker.prompt_rows import PromptRows
from slot_vllm.engine.worker.registry import Registry
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.engine.worker.sharing import Sharing
from slot_vllm.engine.worker.statistics import Statistics
from slot_vllm.engine.worker.table_filling import TableFilling

_WITHOUT_SLOT = "the step goes on without SLOT"


@dataclass(eq=False)
class Step:
    """What the model runner calls in each of its steps. It holds what belongs to the current one.

    Under tensor parallelism every rank has one, and all take the same decisions: from what the
    scheduler says, from sizes that are the same on all, and where something may fail on one alone,
    from what ``failures`` agrees on.
    """

    registry: Registry
    failures: Failures
    rows: PromptRows
    sharing: Sharing
    learner: Learner
    filling: TableFilling
    statistics: Statistics
    # False while vLLM warms up with requests of its own.
    serving: bool = True
    _scheduled: Collection[str] = ()
    _adapted: Sequence[SlotRequest] = ()
    _staged: Additions | None = None

    def begin_step(self, scheduler_output: SchedulerOutput) -> None:
        """Before a step, whoever calls it."""
        if not self.serving:
            return
        try:
            self._begin(scheduler_output)
        except Exception as error:
            self._give_up(Failure.of(error, "arrival"), scheduler_output)

    def not_written(self, failure: Failure) -> None:
        """The step's hidden states are not in the KV cache: a prompt that must read them there,
        now or later, has none."""
        self.rows.not_written = failure
        self.failures.report(
            failure, "until reset_prefix_cache, what hits the step's blocks gets no delta"
        )

    def stage(self, hidden_states: Tensor, view: Callable[[], BatchView]) -> None:
        """Learn the deltas of the prompts that the step completes, and hold ready what its logits
        get. hidden_states: (rows or more, d). If ``view`` raises on any rank, the step's requests
        continue without a delta."""
        self._staged = None
        batch = self.failures.attempt("batch", view)
        if isinstance(batch, Failure):
            staged: Additions | Failure | None = batch
        else:
            work = partial(self._run, hidden_states, batch)
            staged = self.failures.attempt_together("batch", work)
        if not isinstance(staged, Failure):
            self._staged = staged
            return
        self.failures.report(staged, _WITHOUT_SLOT)
        here = [q for q in map(self.registry.get, self._scheduled) if q is not None]
        self.failures.fail_all(here, staged)

    def take(self) -> Additions | None:
        """What was staged, once: later logits of the same step are prompt logprobs."""
        additions, self._staged = self._staged, None
        return additions

    def unstage(self) -> None:
        self._staged = None

    def attempt(self, work: Callable[[], Tensor]) -> Tensor | None:
        """What ``work``, which exchanges nothing, gives to the step's logits. If it raises on any
        rank, None on all, and the requests whose deltas were staged continue without."""
        found = self.failures.attempt("logits", work)
        if not isinstance(found, Failure):
            return found
        self.failures.report(found, _WITHOUT_SLOT)
        self.failures.fail_all(self._adapted, found)
        return None

    def _begin(self, scheduler_output: SchedulerOutput) -> None:
        """Departures, then arrivals: an id may be aborted and used again in the same step."""
        self._staged = self.rows.not_written = None
        self._adapted = ()
        # Before anything else that may fail: vLLM names them once.
        self.registry.depart(scheduler_output.finished_req_ids)
        self._scheduled = scheduler_output.num_scheduled_tokens
        with self.failures.updating():
            self.statistics.log_not_finite(self.failures)
        self.registry.restart(scheduler_output.preempted_req_ids or ())
        self.registry.arrive(scheduler_output.scheduled_new_reqs)

    def _give_up(self, failure: Failure, scheduler_output: Any) -> None:
        """The scheduler output could not be read, on any rank: all requests continue without a
        delta, those that are here and the step's arrivals."""
        self._staged = None
        self.failures.report(failure, _WITHOUT_SLOT)
        self.registry.depart(getattr(scheduler_output, "finished_req_ids", ()))
        self.registry.arrive(getattr(scheduler_output, "scheduled_new_reqs", ()), failure)
        self.failures.fail_all(self.registry.with_slot, failure)

    def _run(self, hidden_states: Tensor, batch: BatchView) -> Additions | None:
        prompts = self._complete_prompts(hidden_states, batch)
        requests = [prompt.request for prompt in prompts]
        known = self.sharing.find(requests)
        # Equal prompts have one table key; the first of them learns, if no earlier one did.
        owners: dict[str, SlotRequest] = {}
        for request in requests:
            if request.failure is None and request.table_key not in known:
                owners.setdefault(request.table_key, request)
        learning = [p for p in prompts if owners.get(p.request.table_key) is p.request]
        self.learner.learn(learning, hidden_states[:1].nbytes if batch.read else 0)
        followers = [q for q in requests if q.status == "prefilling"]
        self.sharing.follow(followers, owners, known)
        additions = self._additions(batch)
        learned = list(owners.values())
        self.sharing.put(learned)
        self.statistics.count("optimized", learned)
        self.statistics.count("shared", followers)
        return additions

    def _complete_prompts(self, hidden_states: Tensor, batch: BatchView) -> list[CompletePrompt]:
        """Those that this step completes; the rows of the others are kept."""
        prefilling: list[SlotRequest] = []
        complete: list[CompletePrompt] = []
        for i, req_id in enumerate(batch.req_ids):
            request = self.registry.get(req_id)
            if request is None or request.status != "prefilling":
                continue
            prefilling.append(request)
            with self.failures.noted(request, "hidden_cache"):
                rows = self.rows.take(request, hidden_states, batch, i)
                if rows is not None:
                    self.sharing.set_key(request)
                    complete.append(CompletePrompt(request, rows))
        self.failures.settle(prefilling)
        return [prompt for prompt in complete if prompt.request.failure is None]

    def _additions(self, batch: BatchView) -> Additions | None:
        adapted = [
            (int(slot), request)
            for slot, request in zip(
                batch.slots, map(self.registry.get, batch.req_ids), strict=True
            )
            if request is not None and request.learned and request.learned.losses.numel()
        ]
        if not adapted:
            return None
        self.filling.fill([request for _, request in adapted])
        adapted = [(slot, request) for slot, request in adapted if request.learned]
        self._adapted = [request for _, request in adapted]
        return additions_for(adapted, self.filling.table, batch)
