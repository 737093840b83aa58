"""``report.html``: one self-contained page about one run or several, from its template."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from slot_vllm.evaluation import stored_run
from slot_vllm.evaluation.errors import ConfigError, writing
from slot_vllm.evaluation.report import figures, sample_browser, svg
from slot_vllm.evaluation.report.across_runs import compare_runs
from slot_vllm.evaluation.report.sections import section
from slot_vllm.evaluation.samples import write_whole
from slot_vllm.evaluation.stored_run import StoredRun
from slot_vllm.evaluation.unicode_text import encoded

_HERE = Path(__file__).parent

# What delta does to single prompts is shown for the first few.
_PROMPTS = 20


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


def render(runs: Sequence[StoredRun]) -> str:
    """The HTML about these runs; the first of several is what the others are compared with."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The page allows no other script than this one, whatever a completion holds.
    script = (_HERE / "sample_browser.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    with svg.style():
        return environment.get_template("report.html.jinja").render(
            runs=runs,
            figures=figures,
            sections=[section(run, task) for run in runs for task in run.tasks],
            comparisons=[compare_runs(runs[0], other) for other in runs[1:]],
            inspections=[
                (run, inspection, figures.logit_shifts(inspection))
                for run in runs
                for inspection in run.inspections
            ],
            browser=sample_browser.content(runs),
            problems_shown=sample_browser.PROBLEMS,
            answers_shown=sample_browser.ANSWERS,
            prompts_shown=_PROMPTS,
            style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_digest=digest,
        )
