"""What vLLM prints: into the log, not onto the terminal."""

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator

from slot_vllm.evaluation.console import console
from slot_vllm.evaluation.errors import ConfigError

logger = logging.getLogger("engine")

_SHOWN_ON_FAILURE = 60


@contextlib.contextmanager
def logged(see: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """While a vLLM engine starts, what this process prints goes to the log, our own console aside;
    what the engine's processes print goes there for as long as they live. If the engine does not
    start, the last lines are printed after all.

    see: called with each line, in a thread.
    """
    lines: deque[str] = deque(maxlen=_SHOWN_ON_FAILURE)
    source, sink = os.pipe()
    reader = threading.Thread(target=_log, args=(source, lines, see), daemon=True)
    reader.start()
    _flush()
    terminal = [(number, os.dup(number)) for number in (1, 2)]
    ours = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    if sys.stderr is sys.__stderr__:
        console.file = ours
    for number, _ in terminal:
        os.dup2(sink, number)
    os.close(sink)
    try:
        yield
    except ConfigError:
        raise
    except Exception:
        _restore(terminal)
        reader.join(timeout=5)
        print(*lines, sep="\n", file=sys.stderr)
        raise
    finally:
        _restore(terminal)
        if console.file is ours:
            console.file = sys.stderr
        ours.close()
        # vLLM's logger has a handler of its own, for standard output; the root's are enough.
        vllm = logging.getLogger("vllm")
        vllm.handlers.clear()
        vllm.propagate = True


def _log(source: int, lines: deque[str], see: Callable[[str], None]) -> None:
    with open(source, encoding="utf-8", errors="replace") as output:
        for line in output:
            lines.append(line.rstrip("\n"))
            logger.info("%s", lines[-1])
            see(lines[-1])


def _restore(terminal: list[tuple[int, int]]) -> None:
    _flush()
    while terminal:
        number, saved = terminal.pop()
        os.dup2(saved, number)
        os.close(saved)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
