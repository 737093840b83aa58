"""Standard output for the result alone."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def to_standard_error() -> Iterator[None]:
    """What this process and those it starts print meanwhile goes to standard error: vLLM's logger,
    and its processes', write to standard output."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
