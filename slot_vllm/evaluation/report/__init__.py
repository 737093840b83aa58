"""``report.html``: one self-contained page about one run or several."""

from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation import stored_run
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.report.page import render
from slot_vllm.evaluation.samples import write_whole
from slot_vllm.evaluation.unicode_text import encoded

__all__ = ["write"]


def write(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about the runs in these directories and returns its path.

    output: default ``report.html`` in the first directory. Raises ConfigError for a run whose
    files are missing or unreadable; then nothing is written.
    """
    output = output or runs[0] / "report.html"
    html = render(stored_run.read_all(runs))
    try:
        write_whole(output, encoded(html))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from None
    return output
