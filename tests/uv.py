"""uv, with pip's own settings where it has none: uv does not read them."""

import os
import subprocess
import sys

UV = (sys.executable, "-m", "uv")
_SETTINGS = {"UV_FIND_LINKS": "global.find-links", "UV_DEFAULT_INDEX": "global.index-url"}


def with_pips_settings() -> dict[str, str]:
    """The variables of a process, with those that tell uv where pip finds packages."""
    found: dict[str, str] = {}
    for variable, name in _SETTINGS.items():
        ask = [sys.executable, "-m", "pip", "config", "get", name]
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
        found |= {} if done.returncode else {variable: done.stdout.strip()}
    return {**found, **os.environ}
