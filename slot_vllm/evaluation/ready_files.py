"""The ready configs and their data, which come with the package."""

from pathlib import Path

import slot_vllm

_PACKAGE = Path(slot_vllm.__file__).parent
_FOLDER = "configs"


def find(path: str | Path) -> Path:
    """``path``; where there is none and it begins with ``configs/``, the package's own file of this
    name, so that a ready config runs in any directory."""
    path = Path(path)
    ours = _PACKAGE / path
    return ours if path.parts[:1] == (_FOLDER,) and not path.exists() and ours.exists() else path
