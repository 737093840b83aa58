"""How far work is: a bar on a terminal, plain lines elsewhere. Both on standard error."""

import time
from collections.abc import Callable
from typing import Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from slot_vllm.evaluation.console import console

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.25


class Progress:
    """total, done: of the work, in whatever unit; they move the bar."""

    def __init__(self, label: str, total: float, done: int = 0) -> None:
        self._label = label
        self._shown = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task(label, total=total, completed=done, said="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: float, say: Callable[[], str], last: bool) -> None:
        """``say``, which is called only if it is time, gives the words beside the bar. last:
        whether it is shown in any case."""
        terminal = console.is_terminal
        pause = SECONDS_BETWEEN_UPDATES if terminal else SECONDS_BETWEEN_LINES
        now = time.monotonic()
        if not last and now - self._shown <= pause:
            return
        self._shown = now
        if terminal:
            self._bar.update(self._row, completed=done, said=say())
        else:
            console.print(f"{self._label}: {say()}", soft_wrap=True, highlight=False)


class Stage(Progress):
    """A named part of the work, and which share of it is done, from 0 to 1."""

    def __init__(self, label: str) -> None:
        super().__init__(label, total=1)
        self._work = self._bar.tasks[0]

    def reach(self, share: float) -> None:
        """Shows that this share is done."""
        if share > self._work.completed:
            self._bar.update(self._row, completed=share)
            self.show(share, self._say, last=share == 1)

    def _say(self) -> str:
        if self._work.finished:
            return f"100% in {self._work.elapsed:.1f} s"
        return f"{self._work.percentage:.0f}%, {time_left(self._work.time_remaining)}"


def time_left(seconds: float | None) -> str:
    """seconds: None if it is not known yet."""
    return "left: ?" if seconds is None else f"left: {seconds:.0f} s"
