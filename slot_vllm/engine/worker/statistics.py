"""What is counted and timed of the requests of one runner."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.engine.wire.worker_metrics import HistogramSnapshot
from slot_vllm.engine.worker.failure import REASONS
from slot_vllm.engine.worker.failures import Failures
from slot_vllm.engine.worker.histogram import Histogram
from slot_vllm.engine.worker.request import SlotRequest
from slot_vllm.engine.worker.step_timer import StepTimer

_OUTCOMES = ("optimized", "shared")
# Of first less last loss, nats per token. Below zero the loss rose.
DROPS = (-1.0, -0.1, -0.01, 0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Statistics:
    """counters: by the names of ``slot_stats``."""

    def __init__(self, device: torch.device, final_loss: bool) -> None:
        self._final_loss = final_loss
        self.counters: Counter[str] = Counter()
        self.step_timer = StepTimer(device)
        # No sum: with values below zero it could fall, which Prometheus takes for a restart.
        self._loss_drops = Histogram(DROPS, device, total=False)
        # An outcome's name counts those of it that are not finite.
        self._device_counts = DeviceCounts((*_OUTCOMES, "loss_rose"), device)

    def observe_drops(self, losses: Sequence[Tensor]) -> None:
        """losses: per prompt (t,) float32, see ``Learned``. What has fewer than two says
        nothing."""
        told = [own[0] - own[-1] for own in losses if own.numel() > 1]
        if told:
            self._loss_drops.observe(torch.stack(told))

    def count(self, outcome: str, requests: Sequence[SlotRequest]) -> None:
        """Of the requests that got a delta in this step. One token is nothing to learn from."""
        given = [q.learned for q in requests if q.learned]
        learned = [x for x in given if x.losses.numel()]
        self.counters["one_token"] += len(given) - len(learned)
        if not learned:
            return
        self.counters[outcome] += len(learned)
        self._device_counts.add(outcome, [~x.finite for x in learned])
        if outcome == "optimized" and self._final_loss:
            rose = [x.finite & (x.losses[-1] > x.losses[0]) for x in learned]
            self._device_counts.add("loss_rose", rose)

    def log_not_finite(self, failures: Failures) -> None:
        """Once the host knows of one."""
        if any(self._device_counts.arrived(outcome) for outcome in _OUTCOMES):
            message = "a loss, hidden state or delta is not finite; its request has no delta"
            failures.log("non_finite", message)

    def read(self) -> dict[str, int | float]:
        """Waits for the device."""
        not_finite = {name: self._device_counts.read(name) for name in _OUTCOMES}
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
            "optimize_seconds": self.step_timer.host_seconds,
        }

    def histograms(self) -> dict[str, HistogramSnapshot]:
        """optimize_seconds: per engine step that learns. loss_drop: per prompt learned from."""
        return {
            "optimize_seconds": self.step_timer.snapshot(),
            "loss_drop": self._loss_drops.snapshot(),
        }


class DeviceCounts:
    """Counters, one per name, of what only the device knows, without a step that waits for it."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._index = {name: i for i, name in enumerate(names)}
        self._counts = torch.zeros(len(names), dtype=torch.int64, device=device)
        self._arrived = torch.zeros(len(names), dtype=torch.int64, pin_memory=device.type == "cuda")

    def add(self, name: str, flags: Sequence[Tensor]) -> None:
        """Count those of ``flags``, () bool on the device, that are true."""
        self._counts[self._index[name]] += torch.stack(list(flags)).sum()
        # On its way to the host; what is there until it comes is an earlier count.
        self._arrived.copy_(self._counts, non_blocking=True)

    def arrived(self, name: str) -> int:
        """What the host knows by now."""
        return int(self._arrived[self._index[name]])

    def read(self, name: str) -> int:
        """Waits for the device."""
        return int(self._counts[self._index[name]])
