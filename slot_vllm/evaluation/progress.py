"""How far a run is: a bar on a terminal, plain lines elsewhere. Both on standard error."""

import time
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from slot_vllm.evaluation.console import console

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """How much of what is asked is answered: done/total, tokens per second, time left."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._label = label
        self._total = total
        self._done = self._done_before = done
        self._tokens = 0
        self._started = self._last_line = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} tok/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task(self._label, total=total, completed=done, rate="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def add_tokens(self, count: int) -> None:
        """Counts generated tokens."""
        self._tokens += count
        self._show(last=False)

    def advance(self) -> None:
        """Counts a finished request."""
        self._done += 1
        self._show(last=self._done == self._total)

    def _show(self, last: bool) -> None:
        elapsed = time.monotonic() - self._started
        rate = f"{self._tokens / elapsed:.0f}" if elapsed else "-"
        if console.is_terminal:
            self._bar.update(self._row, completed=self._done, rate=rate)
        elif last or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = "?" if self._done == self._done_before else f"{self._left(elapsed):.0f} s"
            console.print(
                f"{self._label}: {self._done}/{self._total}, {rate} tok/s, left: {left}",
                soft_wrap=True,
                highlight=False,
            )

    def _left(self, elapsed: float) -> float:
        """Seconds, at the pace so far."""
        return elapsed / (self._done - self._done_before) * (self._total - self._done)
