"""How far a part of the work on a model is: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from slot_vllm.evaluation.console import console

SECONDS_BETWEEN_LINES = 10.0


class Stage:
    """A named part of the work, and which share of it is done. On standard error."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last_line = time.monotonic()
        self._shown = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task(label, total=1)

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

    def reach(self, share: float) -> None:
        """Shows that this share (0 to 1) is done."""
        if console.is_terminal:
            self._bar.update(self._row, completed=share)
            return
        late = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if share > self._shown and (share == 1 or late):
            self._last_line = time.monotonic()
            self._shown = share
            console.print(f"{self._label}: {share:.0%}", soft_wrap=True, highlight=False)
