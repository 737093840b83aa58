"""How far work is: a bar on a terminal, plain lines elsewhere. Both on standard error."""

from abc import ABC, abstractmethod
from typing import Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from slot_vllm.evaluation.console import console

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.25


class Progress(ABC):
    """total, done: of the work, in whatever unit; they move the bar."""

    def __init__(self, label: str, total: float = 1, done: int = 0) -> None:
        self._label = label
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task(label, total=total, completed=done, said="")
        self._work = self._bar.tasks[0]
        self._shown = self._bar.get_time()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @abstractmethod
    def _say(self) -> str:
        """The words beside the bar."""

    def reach(self, done: float) -> None:
        """Shows that so much is done, if it was less before."""
        if done > self._work.completed:
            self._bar.update(self._row, completed=done)
            self.show()

    def show(self) -> None:
        """Says how far it is, if it is time or all is done."""
        terminal = console.is_terminal
        pause = SECONDS_BETWEEN_UPDATES if terminal else SECONDS_BETWEEN_LINES
        now = self._bar.get_time()
        if not self._work.finished and now - self._shown <= pause:
            return
        self._shown = now
        if terminal:
            self._bar.update(self._row, said=self._say())
        else:
            console.print(f"{self._label}: {self._say()}", soft_wrap=True, highlight=False)


class Stage(Progress):
    """A named part of the work, and which share of it is done, from 0 to 1."""

    def _say(self) -> str:
        done, elapsed = self._work.completed, self._work.elapsed or 0.0
        if self._work.finished:
            return f"100% in {elapsed:.1f} s"
        # At the pace since the start, not the last 30 s' as rich has it: work may come in bursts.
        return f"{done:.0%}, {time_left(elapsed / done * (1 - done))}"


def time_left(seconds: float | None) -> str:
    """seconds: None if it is not known yet."""
    return "left: ?" if seconds is None else f"left: {seconds:.0f} s"
