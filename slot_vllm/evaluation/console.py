"""What a run says: its own steps on standard error, others' warnings in ``run.log`` only."""

import logging
import logging.handlers
from pathlib import Path

from rich.console import Console
from rich.text import Text

console = Console(stderr=True)

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_BUFFERED = 100_000


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, not into it: what we say, and others' errors."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("slot_vllm.evaluation") or record.levelno >= logging.ERROR:
            console.print(Text(record.getMessage()), soft_wrap=True)


class RunLog:
    """Collects log records from its construction on; ``open`` gives them a file.

    So a run that never starts leaves no file behind.
    """

    def __init__(self) -> None:
        self._buffer = logging.handlers.MemoryHandler(_BUFFERED, flushLevel=logging.CRITICAL + 1)
        handlers = [self._buffer, _ConsoleHandler()]
        logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
        logging.captureWarnings(True)
        # It repeats every answer in which it finds no result; samples.jsonl has them all.
        logging.getLogger("lighteval.metrics").setLevel(logging.ERROR)

    def open(self, path: Path) -> None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter(_FORMAT))
        self._buffer.setTarget(file)
        self._buffer.flush()
        root = logging.getLogger()
        root.removeHandler(self._buffer)
        root.addHandler(file)
