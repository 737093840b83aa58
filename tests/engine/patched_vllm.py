"""A copy of the installed vLLM, to be patched and put first on PYTHONPATH."""

import shutil
from pathlib import Path

import vllm


def copy_vllm(target: Path) -> Path:
    """``target``, which then contains ``vllm/``: Python files as copies, with their bytecode, the
    rest as links."""

    def copy(source: str, destination: str) -> None:
        if source.endswith((".py", ".pyc")):
            shutil.copy2(source, destination)
        else:
            Path(destination).symlink_to(source)

    shutil.copytree(Path(vllm.__file__).parent, target / "vllm", copy_function=copy)
    return target
