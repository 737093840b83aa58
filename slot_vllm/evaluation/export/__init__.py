"""``slot-vllm export``: a finished run in the forms that others read."""

from importlib import import_module
from pathlib import Path

from slot_vllm.evaluation.errors import writing

# Of each: the module here that writes the run of a directory to a path, imported where it is asked
# for; and that path's default in the directory.
FORMATS = {
    "inspect": ("inspect_logs", "inspect"),
    "every_eval_ever": ("every_eval_ever", "every_eval_ever.json"),
    "packed": ("packed", "packed"),
}


def export(directory: Path, form: str, output: Path | None = None) -> list[Path]:
    """Writes a run in one of FORMATS and returns the files. Raises ConfigError."""
    module, default = FORMATS[form]
    output = output or directory / default
    with writing(output):
        written: list[Path] = import_module(f"{__name__}.{module}").write(directory, output)
    return written
