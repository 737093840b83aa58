"""Ctrl-C that ends a run, whatever the code does that it hits.

KeyboardInterrupt alone does not: where it hits code that is not ready for it, it is lost or becomes
another error (vLLM's pool of tokenizers makes it an UnboundLocalError), and then a run may wait for
ever on an engine that the same Ctrl-C has ended.
"""

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
# An engine that is well ends within 10 s, on busy cores 20.
GRACE_SECONDS = 30.0
AT_ONCE_SECONDS = 1.0


class Interruption:
    """While entered, SIGINT sets ``happened`` and raises KeyboardInterrupt as ever. What has not
    left the block ``grace`` seconds later is ended with exit code 130, child processes too: by
    then every answer is on disk. To be entered in the main thread; one in another is told too.

    at_once: nothing that runs is worth waiting for; child processes are ended immediately, and the
        grace is short.
    """

    def __init__(self, grace: float = GRACE_SECONDS, at_once: bool = False) -> None:
        self.happened = False
        self._at_once = at_once
        grace = AT_ONCE_SECONDS if at_once else grace
        self._watchdog = threading.Timer(grace, self._end)
        self._watchdog.daemon = True
        self._grace = grace

    def __enter__(self) -> "Interruption":
        # What is done in here may send standard error elsewhere.
        self._terminal = os.dup(2)
        self._earlier = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        signal.signal(signal.SIGINT, self._earlier)
        os.close(self._terminal)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.happened:
            self.happened = True
            self._watchdog.start()
            if self._at_once:
                _kill_children()
        if callable(self._earlier):
            self._earlier(number, frame)
        raise KeyboardInterrupt

    def _end(self) -> None:
        said = f"interrupted; what did not end within {self._grace:.0f} s was killed"
        os.write(self._terminal, f"{said} (answers that are in are kept)\n".encode())
        end_process()


def end_process() -> NoReturn:
    """With its children, as interrupted: to clear away what is loaded takes Python seconds."""
    _kill_children()
    os._exit(EXIT_INTERRUPTED)


def _kill_children() -> None:
    """Those of multiprocessing, and theirs."""
    for child in multiprocessing.active_children():
        import psutil  # of the extra `eval`, as are all that start some

        try:
            process = psutil.Process(child.pid)
            for one in (process, *process.children(recursive=True)):
                one.kill()
        except psutil.NoSuchProcess:
            continue
