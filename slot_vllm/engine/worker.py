"""The worker extension: its RPC methods, and SLOT's way onto the worker's model runner.

vLLM imports this module in a worker process when an engine names the extension. Importing it wraps
``Worker.load_model``, a start-up function: a mixed-in extension class can only add methods.
"""

import functools
import logging
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from slot_vllm import __version__
from slot_vllm.engine.deltas import Deltas
from slot_vllm.engine.linear_head import LinearHead
from slot_vllm.engine.runners import hook_v1, hook_v2, watch
from slot_vllm.engine.startup import asks_for_slot, read_config
from slot_vllm.params import SlotError

logger = logging.getLogger("vllm.slot_vllm")


class SlotWorkerExtension:
    """Methods for ``collective_rpc``; each returns one value per worker."""

    def slot_stats(self) -> dict[str, int | float]:
        """Counters since start (optimized, shared, bypassed, failed, prompt_tokens,
        optimize_seconds as seen by the host) and what is alive now."""
        return _deltas(self).stats()

    def slot_forget_shared(self) -> None:
        """Let no later request use a delta that was learned until now. To be called with
        ``reset_prefix_cache`` whenever the weights were changed by other means than vLLM's."""
        _deltas(self).forget_shared()

    def slot_errors(self) -> list[str]:
        """The most recent tracebacks, oldest first."""
        return list(_deltas(self).errors)

    def slot_delta(self, request_id: str) -> list[float] | None:
        """The d floats learned for the request whose output shows ``request_id``; None if there
        are none, or none are kept (``keep_deltas``)."""
        learned = _deltas(self).find(request_id)
        return None if learned is None else learned.delta.tolist()

    def slot_losses(self, request_id: str) -> list[float] | None:
        """Mean prompt loss (nats per token) before each step and, with ``report_loss``, after the
        last one; None as for ``slot_delta``."""
        learned = _deltas(self).find(request_id)
        return None if learned is None else learned.losses.tolist()

    def slot_scale(self, request_id: str) -> float | None:
        """What safeguards (``slot_guard``, ``slot_max_kl``) multiplied the request's delta by, from
        0 to 1; 1 without any. None as for ``slot_delta``."""
        learned = _deltas(self).find(request_id)
        return None if learned is None else learned.scale.item()

    def slot_token_shifts(self, request_id: str) -> bytes | None:
        """W delta of the request, and its bias if it has one: what it adds to the logit of each of
        the V tokens, before the model's soft cap and scale, at every position alike. V is without
        the padding.

        V float32 in the machine's byte order, for ``np.frombuffer(shifts, np.float32)``: vLLM's
        messages between processes carry bytes, but no arrays. With ``slot_rounding: model`` the
        logits get what rounding leaves of it. None as for ``slot_delta``.
        """
        shifts = _deltas(self).token_shifts(request_id)
        return None if shifts is None else shifts.cpu().numpy().tobytes()


def _deltas(worker: Any) -> Deltas:
    deltas = getattr(worker.model_runner, "slot_deltas", None)
    if deltas is None:
        raise SlotError("this engine was started without SLOT (--worker-extension slot_vllm)")
    assert isinstance(deltas, Deltas)
    return deltas


def install(worker: Any) -> None:
    """Put SLOT onto the model runner of ``worker``, whose model is loaded. Raises SlotError."""
    runner = worker.model_runner
    config = read_config(worker.vllm_config)
    model = runner.get_model()
    hidden_size = worker.vllm_config.model_config.get_hidden_size()
    linear_head = LinearHead(model, hidden_size, runner.dtype)
    deltas = Deltas(config, linear_head, runner.max_num_reqs, runner.device)
    v2 = worker.use_v2_model_runner
    cache = None
    if config.hidden_cache == "on":
        # Only here: a vLLM without HiddenStateCacheSpec cannot import it.
        from slot_vllm.engine.hidden_cache import HiddenCache

        cache = HiddenCache(worker.vllm_config, hidden_size)
    (hook_v2 if v2 else hook_v1)(runner, deltas, cache)
    watch(worker, deltas, cache)
    linear_head.hook(deltas.take)
    runner.slot_deltas = deltas
    runner.slot_hidden_cache = cache
    logger.info(
        "SLOT %s on the %s model runner; head %s; workspace %d MiB (%s); defaults: steps %d, "
        "lr %g, betas %s, eps %g, weight_decay %g, rounding %s; at most %d steps",
        __version__,
        "V2" if v2 else "V1",
        linear_head.describe(),
        deltas.workspace_size.mb,
        deltas.workspace_size.reason,
        config.steps,
        config.lr,
        config.betas,
        config.eps,
        config.weight_decay,
        config.rounding,
        config.max_steps,
    )


def _wrap_load_model() -> None:
    original = Worker.load_model

    @functools.wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if asks_for_slot(self.vllm_config):
            install(self)

    Worker.load_model = load_model


_wrap_load_model()
