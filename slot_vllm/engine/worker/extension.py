"""The worker extension: its RPC methods, and SLOT's way onto the worker's model runner.

vLLM imports this module in a worker process when an engine names the extension. Importing it wraps
``Worker.load_model``, a start-up function: a mixed-in extension class can only add methods.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.worker.gpu_worker import Worker

from slot_vllm.engine.vllm_contract import release
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.engine_settings import asks_for_slot
from slot_vllm.engine.wire.receipt_dict import ReceiptDict
from slot_vllm.engine.wire.worker_metrics import WorkerMetrics
from slot_vllm.engine.worker.common_settings import common_config
from slot_vllm.engine.worker.linear_head import LinearHead
from slot_vllm.engine.worker.ranks import Ranks
from slot_vllm.engine.worker.runner_in_use import is_v2
from slot_vllm.engine.worker.runner_state import RunnerState
from slot_vllm.engine.worker.runners import hook_v1, hook_v2, watch
from slot_vllm.engine.worker.startup_table import startup_table
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotConfig, SlotError

logger = logging.getLogger("vllm.slot_vllm")

T = TypeVar("T")


class SlotWorkerExtension:
    """Methods for ``collective_rpc``; each returns one value per worker. The tensor-parallel ranks
    of the last pipeline stage all know the deltas; the workers of the other stages know nothing,
    and answer with what is empty."""

    def slot_stats(self) -> dict[str, int | float]:
        """Counters since start (optimized, shared, bypassed, failed, prompt_tokens,
        optimize_seconds as seen by the host) and what is alive now."""
        return _ask(self, RunnerState.stats, {})

    def slot_metrics(self) -> WorkerMetrics | None:
        """``slot_stats`` and the histograms, for the server's ``/metrics``."""
        return _ask(self, RunnerState.metrics, None)

    def slot_forget_shared(self) -> None:
        """Let no later request use a delta that was learned until now. To be called with
        ``reset_prefix_cache`` whenever the weights were changed by other means than vLLM's."""
        _ask(self, lambda state: state.sharing.forget(), None)

    def slot_errors(self) -> list[str]:
        """The most recent tracebacks, oldest first."""
        return _ask(self, lambda state: list(state.failures.errors), [])

    def slot_delta(self, request_id: str) -> list[float] | None:
        """The d floats learned for the request whose output shows ``request_id``; None if there
        are none, or none are kept (``keep_deltas``)."""
        learned = _find(self, request_id)
        return None if learned is None else learned.delta.tolist()

    def slot_losses(self, request_id: str) -> list[float] | None:
        """Mean prompt loss (nats per token) before each step and, with ``report_loss``, after the
        last one; None as for ``slot_delta``."""
        learned = _find(self, request_id)
        return None if learned is None else learned.losses.tolist()

    def slot_scale(self, request_id: str) -> float | None:
        """1: all of a delta is applied, as nothing scales it any more. None as for
        ``slot_delta``."""
        return None if _find(self, request_id) is None else 1.0

    def slot_receipt(self, request_id: str) -> ReceiptDict | None:
        """What SLOT did to the request whose output shows ``request_id``; see ``ReceiptDict``. None
        before its prompt is complete, once it is too long ago, and unless ``receipts`` is set."""
        return _ask(self, lambda state: state.receipt(request_id), None)

    def slot_receipts(self, response_ids: list[str]) -> dict[str, list[ReceiptDict]]:
        """The same for a server, by the ids of its responses: one for each of a response's
        prompts."""
        return _ask(self, lambda state: state.receipts_of(response_ids), {})

    def slot_token_shifts(self, request_id: str) -> bytes | None:
        """W delta of the request: what it adds to the logit of each of the V tokens, before the
        model's soft cap and scale, at every position alike. V is without the padding.

        V float32 in the machine's byte order, for ``np.frombuffer(shifts, np.float32)``: vLLM's
        messages between processes carry bytes, but no arrays. With ``slot_rounding: model`` the
        logits get what rounding leaves of it. None as for ``slot_delta``. The tensor-parallel ranks
        put it together, so that each returns all of it.
        """
        shifts = _ask(self, lambda state: state.token_shifts(request_id), None)
        return None if shifts is None else shifts.cpu().numpy().tobytes()


def _ask(worker: Any, question: Callable[[RunnerState], T], nothing: T) -> T:
    """``nothing`` is the answer of a pipeline stage that does not have the head."""
    if not hasattr(worker.model_runner, "slot_state"):
        raise SlotError("this engine was started without SLOT (--worker-extension slot_vllm)")
    state: RunnerState | None = worker.model_runner.slot_state
    return nothing if state is None else question(state)


def _find(worker: Any, request_id: str) -> Learned | None:
    return _ask(worker, lambda state: state.registry.find(request_id), None)


def install(worker: Any) -> None:
    """Put SLOT onto the model runner of ``worker``, whose model is loaded. Raises SlotError."""
    runner = worker.model_runner

    def check(config: SlotConfig) -> None:
        release.check_worker(is_v2(runner), config.hidden_cache == "on")
        if get_tp_group().world_size > 1:
            release.require("tensor parallel")

    config = common_config(worker.vllm_config, check)
    if not get_pp_group().is_last_rank:
        runner.slot_state = runner.slot_hidden_cache = None
        return
    ranks = Ranks(get_tp_group())
    model = runner.get_model()
    hidden_size = worker.vllm_config.model_config.get_hidden_size()
    linear_head = LinearHead(model, hidden_size, runner.dtype, ranks)
    state = RunnerState(config, linear_head, runner.max_num_reqs, runner.device)
    cache = None
    if config.hidden_cache == "on":
        # Only here: a vLLM without HiddenStateCacheSpec cannot import it.
        from slot_vllm.engine.worker.hidden_cache import HiddenCache

        cache = HiddenCache(worker.vllm_config, hidden_size, ranks)
    v2 = is_v2(runner)
    (hook_v2 if v2 else hook_v1)(runner, state.step, cache)
    watch(worker, state, cache)
    linear_head.hook(state.step.take, state.step.attempt)
    runner.slot_state = state
    runner.slot_hidden_cache = cache
    logger.info("%s", startup_table(config, v2, linear_head.describe(), state))


@wrap(Worker, "load_model")
def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    if asks_for_slot(self.vllm_config):
        install(self)
