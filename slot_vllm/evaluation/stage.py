"""A part of the work whose share that is done is known: a download, a conversion, prompts read."""

import time

from slot_vllm.evaluation.progress import Progress, time_left


class Stage(Progress):
    """A named part of the work, and which share of it is done, from 0 to 1."""

    def __init__(self, label: str) -> None:
        super().__init__(label, total=1)
        self._started = time.monotonic()
        self._before: float | None = None
        self._reached = 0.0

    def reach(self, share: float) -> None:
        """Shows that this share is done."""
        if self._before is None:
            self._before = share if share < 1 else 0.0
        if share > self._reached:
            self._reached = share
            self.show(share, self._say, last=share == 1)

    def _say(self) -> str:
        if self._reached == 1:
            return f"100% in {time.monotonic() - self._started:.1f} s"
        return f"{self._reached:.0%}, {time_left(self._seconds_left())}"

    def _seconds_left(self) -> float | None:
        """At the pace since the first share, which may have been there before."""
        done = self._reached - (self._before or 0.0)
        if not done:
            return None
        return (time.monotonic() - self._started) / done * (1 - self._reached)
