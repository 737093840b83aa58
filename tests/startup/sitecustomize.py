"""First of all in every Python process that the tests start, unless with ``--full``: garbage is
collected rarely, and not in what was imported. Else that takes more than a quarter of the time in
which vLLM is imported, and seconds of each engine's start."""

import atexit
import gc
import sys

MANY = 500
_modules = 0


def _freeze(phase: str, info: dict[str, int]) -> None:
    """Before a whole collection, where many modules are new."""
    global _modules
    if phase == "start" and info["generation"] == 2 and len(sys.modules) > _modules + MANY:
        _modules = len(sys.modules)
        gc.freeze()


@atexit.register
def _thaw() -> None:
    """Else extensions report what they take for leaks."""
    gc.callbacks.remove(_freeze)
    gc.unfreeze()


gc.set_threshold(20_000)
gc.callbacks.append(_freeze)
