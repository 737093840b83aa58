"""What a run says: its own steps on standard error, others' warnings in ``run.log`` only."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from slot_vllm.evaluation.errors import ConfigError, writing

logger = logging.getLogger(__name__)

console = Console(stderr=True)

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, not into it: what we say, and others' errors."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("slot_vllm.evaluation") or record.levelno >= logging.ERROR:
            console.print(Text(record.getMessage()), soft_wrap=True)


def say(*more: logging.Handler) -> None:
    """From now on log records go to the console as above, and to these handlers."""
    logging.basicConfig(level=logging.INFO, handlers=[*more, _ConsoleHandler()], force=True)
    logging.captureWarnings(True)
    # It repeats every answer in which it finds no result; samples.jsonl has them all.
    logging.getLogger("lighteval.metrics").setLevel(logging.ERROR)


@contextlib.contextmanager
def run_log(path: Path) -> Iterator[None]:
    """``run.log``, which each run in a directory adds to. It is there as soon as it is entered, and
    is told where it is. Bad input (ConfigError) leaves it as it was.

    Raises ConfigError if it cannot be written.
    """
    new = [folder for folder in path.parents if not folder.exists()]
    length = path.stat().st_size if path.exists() else 0
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(_FORMAT))
    say(file)
    logger.info("log: %s", path)
    try:
        yield
    except ConfigError:
        logging.getLogger().removeHandler(file)
        file.close()
        os.truncate(path, length)
        if not length:
            path.unlink()
        with contextlib.suppress(OSError):  # it holds something else
            for folder in new:
                folder.rmdir()
        raise
