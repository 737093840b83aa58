"""The in-process engines of a test process, and what each test must leave them as."""

import gc
import os
from typing import Any

# It would override the engines' own kv_cache_memory_bytes.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)

# Small enough that the mixed cases are chunked and preempted.
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 320,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
    "block_size": 32,
    "num_gpu_blocks_override": 14,
    "kv_cache_memory_bytes": 1 << 26,
}
# For tests in which no request shall wait for blocks.
ROOMY = {"num_gpu_blocks_override": 200}
# For all requests, so that those that name nothing are tested too.
SLOT = {"steps": 5, "workspace_mb": 8, "keep_deltas": 64, "report_loss": True}
# Engines with processes of their own that a process of tests keeps: with all of them, of a process
# for each worker that nothing was forked from, 24 GiB do not suffice.
MOST_WITH_PROCESSES = 4
# Of ``slot_stats``, what does not only grow.
GAUGES = {
    "requests",
    "table_rows",
    "pending_device_bytes",
    "pending_host_bytes",
    "kept_deltas",
    "shared_deltas",
    "workspace_bytes",
}


class Engines:
    """One per model and settings, until the process ends: a first engine costs some ten seconds,
    a further one about one; and to end one, vLLM ends what all in the process share. Of those with
    processes of their own the last ``MOST_WITH_PROCESSES`` that were asked for stay."""

    def __init__(self) -> None:
        self._engines: dict[str, Any] = {}

    def get(self, model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        key = repr((model, slot and sorted(slot.items()), slot is None, sorted(options.items())))
        if key not in self._engines:
            from vllm import LLM

            # Each engine collects garbage nine times: not through all that vLLM imports.
            gc.freeze()
            extra: dict[str, Any] = (
                {}
                if slot is None
                else {
                    "worker_extension_cls": "slot_vllm.SlotWorkerExtension",
                    "additional_config": {"slot": {**SLOT, **slot}},
                }
            )
            llm = self._engines[key] = LLM(model, **{**SMALL, **options, **extra})
            keep_groups(llm)
            llm.own_methods = _methods(llm)
        # The last one that was asked for is the last.
        llm = self._engines[key] = self._engines.pop(key)
        own = [key for key, one in self._engines.items() if _worker(one) is None]
        for key in own[:-MOST_WITH_PROCESSES]:
            self._engines.pop(key).llm_engine.engine_core.shutdown()
        return llm

    def check(self, llm: Any) -> None:
        """Raises AssertionError for what a test left in it, and gives it to no further test."""
        try:
            assert_nothing_left(llm)
        except BaseException:
            self._engines = {key: one for key, one in self._engines.items() if one is not llm}
            if _worker(llm) is None:
                llm.llm_engine.engine_core.shutdown()
            raise

    def shut_down(self) -> None:
        """Of those with processes of their own. The others end with this process: vLLM collects
        garbage twice for each, which takes seconds."""
        for llm in self._engines.values():
            if _worker(llm) is None:
                llm.llm_engine.engine_core.shutdown()


def keep_groups(llm: Any) -> None:
    """When vLLM's engine in this process is collected as garbage, it ends the process groups that
    all engines of the process share, and each of their steps raises from then on: not of this."""
    core = llm.llm_engine.engine_core
    # Before 0.31 there is none. One with processes of its own has no groups here.
    if _worker(llm) is not None and hasattr(core, "_finalizer"):
        core._finalizer.detach()


def runner_of(llm: Any) -> Any:
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def state_of(llm: Any) -> Any:
    """The state of a SLOT engine whose worker is in this process, else None."""
    return None if _worker(llm) is None else getattr(runner_of(llm), "slot_state", None)


def statuses(state: Any, own: str | None = None) -> dict[str, list[str]]:
    """The running requests by status, but for the plain one that its caller calls ``own``."""
    found: dict[str, list[str]] = {}
    for name, request in state.registry.requests.items():
        if request.status != "plain" or name.rpartition("-")[0] != own:
            found.setdefault(request.status, []).append(name)
    return found


def _worker(llm: Any) -> Any:
    return getattr(llm.llm_engine.engine_core.engine_core.model_executor, "driver_worker", None)


def _parts(llm: Any) -> dict[str, Any]:
    """The objects whose methods tests replace."""
    parts = {"scheduler": scheduler_of(llm)}
    if state := state_of(llm):
        parts |= {"step": state.step, "registry": state.registry, "learner": state.learner}
        parts |= {"rows": state.rows, "table": state.table}
        parts |= {"buffers": state.buffers, "workspace": state.workspace}
    return parts


def _methods(llm: Any) -> dict[str, Any]:
    """What stands on these objects themselves instead of on their classes."""
    return {
        f"{name}.{key}": value
        for name, part in _parts(llm).items()
        for key, value in vars(part).items()
        # What monkeypatch puts back is the class's.
        if callable(value) and getattr(value, "__self__", None) is not part
    }


def begin_test(llm: Any) -> None:
    """As a new engine is, for ``stats_of`` too."""
    llm.reset_prefix_cache()
    # Of one worker: of several nobody asks it.
    llm.stats_before, *_ = llm.collective_rpc(_begin)


def _begin(worker: Any) -> dict[str, Any]:
    """In each worker; what it counted before."""
    state = getattr(worker.model_runner, "slot_state", None)
    if state is None:
        return {}
    state.sharing.forget()
    state.failures.errors.clear()
    return {name: n for name, n in state.stats().items() if name not in GAUGES}


def assert_nothing_left(llm: Any) -> None:
    from vllm import SamplingParams

    assert not llm.llm_engine.has_unfinished_requests(), "unfinished requests"
    replaced = [k for k, method in _methods(llm).items() if llm.own_methods.get(k) is not method]
    assert not replaced, f"still replaced by the test: {replaced}"
    if "slot" not in llm.llm_engine.vllm_config.additional_config:
        return
    # Departures reach the worker with the next step, of an asynchronous engine with the one after.
    params = SamplingParams(max_tokens=2, detokenize=False, extra_args={"slot_steps": 0})
    (own,) = llm.generate([{"prompt_token_ids": [3, 4]}], params, use_tqdm=False)
    workers = llm.collective_rpc(_left, args=(own.request_id,))
    left: dict[str, Any] = {f"worker {i}": found for i, found in enumerate(workers)}
    left["scheduler"] = _left_in_scheduler(scheduler_of(llm))
    if left["scheduler"]:
        # It forgets a request when nothing refers to it any more.
        gc.collect()
        left["scheduler"] = _left_in_scheduler(scheduler_of(llm))
    assert not any(left.values()), {name: what for name, what in left.items() if what}


def _left(worker: Any, own: str) -> dict[str, Any]:
    """Of requests, in a worker, but of ``own``, whose departure it will hear of."""
    state = getattr(worker.model_runner, "slot_state", None)
    if state is None:
        return {}
    table = state.table
    left = {
        **statuses(state, own),
        "table rows": len(table),
        "pending bytes": state.buffers.device_bytes + state.buffers.host_bytes,
        "staged": state.step._staged is not None,
        # Row 0 is of those without SLOT.
        "row 0": bool(table.biases[0].any() or table.rounded[0].any() or table.effective[0]),
    }
    return {name: what for name, what in left.items() if what}


def _left_in_scheduler(scheduler: Any) -> dict[str, int]:
    """What it knows of requests with ``max_concurrent``."""
    names = ("_completed", "_learned", "_prompts")
    left = {name: len(getattr(scheduler, name, ())) for name in names}
    return {name: count for name, count in left.items() if count}
