"""``report.html``: one self-contained page about one run or several."""

from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation import stored_run
from slot_vllm.evaluation.errors import ConfigError, writing
from slot_vllm.evaluation.report.page import render
from slot_vllm.evaluation.samples import write_whole
from slot_vllm.evaluation.unicode_text import encoded

__all__ = ["write"]


def write(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page about the runs in these directories and returns its path.

    output: of one run, default ``report.html`` in its directory; several runs need one, for that
    file is the first one's own. Raises ConfigError without it, and for a run whose files are
    missing or unreadable; then nothing is written.
    """
    if output is None:
        if len(runs) > 1:
            raise ConfigError(
                f"--output: several runs need one, such as a-b.html; {runs[0] / 'report.html'} is "
                "that run's own"
            )
        output = runs[0] / "report.html"
    html = render(stored_run.read_all(runs))
    with writing(output):
        write_whole(output, encoded(html))
    return output
