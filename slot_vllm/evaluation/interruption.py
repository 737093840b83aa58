"""Ctrl-C that ends a run, whatever the code does that it hits.

KeyboardInterrupt alone does not: where it hits code that is not ready for it, it is lost or becomes
another error (vLLM's pool of tokenizers makes it an UnboundLocalError), and then a run may wait for
ever on an engine that the same Ctrl-C has ended.
"""

import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

EXIT_INTERRUPTED = 130
# An engine that is well ends within 10 s, on busy cores 20.
GRACE_SECONDS = 30.0


class Interruption:
    """While entered, SIGINT sets ``happened`` and raises KeyboardInterrupt as ever. What has not
    left the block ``grace`` seconds later is ended with exit code 130, child processes too: by
    then every answer is on disk. To be entered in the main thread.
    """

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        self.happened = False
        self._watchdog = threading.Timer(grace, self._end)
        self._watchdog.daemon = True
        self._grace = grace

    def __enter__(self) -> "Interruption":
        self._earlier = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._watchdog.cancel()
        signal.signal(signal.SIGINT, self._earlier)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.happened:
            self.happened = True
            self._watchdog.start()
        raise KeyboardInterrupt

    def _end(self) -> None:
        print(
            f"interrupted; what did not end within {self._grace:.0f} s was killed "
            "(answers that are in are kept)",
            file=sys.stderr,
            flush=True,
        )
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(EXIT_INTERRUPTED)
