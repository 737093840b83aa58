"""``slot-vllm export``: a finished run in the forms that others read."""

from collections.abc import Callable
from pathlib import Path

from slot_vllm.evaluation.errors import writing
from slot_vllm.evaluation.export import every_eval_ever, inspect_logs, packed

__all__ = ["FORMATS", "export"]

# Of each: what writes the run of a directory to a path, and that path's default in the directory.
FORMATS: dict[str, tuple[Callable[[Path, Path], list[Path]], str]] = {
    "inspect": (inspect_logs.write, "inspect"),
    "every_eval_ever": (every_eval_ever.write, "every_eval_ever.json"),
    "packed": (packed.write, "packed"),
}


def export(directory: Path, form: str, output: Path | None = None) -> list[Path]:
    """Writes a run in one of FORMATS and returns the files. Raises ConfigError."""
    write, default = FORMATS[form]
    output = output or directory / default
    with writing(output):
        return write(directory, output)
