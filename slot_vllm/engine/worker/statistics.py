"""What is counted and timed of the requests of one runner."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from slot_vllm.engine.wire.histogram import HistogramSnapshot
from slot_vllm.engine.worker.device_counts import DeviceCounts
from slot_vllm.engine.worker.failure import REASONS
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.loss_drops import LossDrops
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.engine.worker.step_timer import StepTime, StepTimer

_OUTCOMES = ("optimized", "shared")


class Statistics:
    """counters: by the names of ``slot_stats``."""

    def __init__(self, device: torch.device, final_loss: bool) -> None:
        self._final_loss = final_loss
        self.counters: Counter[str] = Counter()
        self.loss_drops = LossDrops(device)
        self._optimize_seconds = 0.0
        self._step_timer = StepTimer(device)
        self._device_counts = DeviceCounts((*map(_not_finite, _OUTCOMES), "loss_rose"), device)

    @contextmanager
    def learning(self, prompts: int) -> Iterator[StepTime]:
        began = time.perf_counter()
        with self._step_timer.step(prompts) as step:
            yield step
        self._optimize_seconds += time.perf_counter() - began

    def count(self, outcome: str, requests: Sequence[SlotRequest]) -> None:
        """Of the requests that got a delta in this step. One token is nothing to learn from."""
        given = [q.learned for q in requests if q.learned]
        learned = [x for x in given if x.losses.numel()]
        self.counters["one_token"] += len(given) - len(learned)
        if not learned:
            return
        self.counters[outcome] += len(learned)
        self._device_counts.add(_not_finite(outcome), [~x.finite for x in learned])
        if outcome == "optimized" and self._final_loss:
            rose = [x.finite & (x.losses[-1] > x.losses[0]) for x in learned]
            self._device_counts.add("loss_rose", rose)

    def log_not_finite(self, failures: Failures) -> None:
        """Once the host knows of one."""
        if any(self._device_counts.arrived(_not_finite(outcome)) for outcome in _OUTCOMES):
            message = "a loss, hidden state or delta is not finite; its request has no delta"
            failures.log("non_finite", message)

    def read(self) -> dict[str, int | float]:
        """Waits for the device."""
        not_finite = {name: self._device_counts.read(_not_finite(name)) for name in _OUTCOMES}
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
            "optimize_seconds": self._optimize_seconds,
        }

    def histograms(self) -> dict[str, HistogramSnapshot]:
        """optimize_seconds: per engine step that learns. loss_drop: per prompt learned from."""
        return {
            "optimize_seconds": self._step_timer.snapshot(),
            "loss_drop": self.loss_drops.snapshot(),
        }


def _not_finite(outcome: str) -> str:
    return f"non_finite.{outcome}"
