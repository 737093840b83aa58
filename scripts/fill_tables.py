"""Writes the tables of committed runs, and those of the settings, into the pages that show them.

    python scripts/fill_tables.py

A page says where and what, RUN being a directory under logs/reference; ``tables`` makes it:

    <!-- scores RUN: METRIC, METRIC -->   a row per arm: value, difference to the baseline, Holm's p
                                          (PAPER, last: what the paper reports)
    <!-- answers RUN -->                  a row per arm: lengths, truncated, loops, losses
    <!-- arms RUN -->                     which arms of its file under configs there are, in words
    <!-- groups RUN: COLUMN -->           a row per group of problems, an arm per column
    <!-- instructions RUN: RULE -->      a row per kind of instruction, strictly or loosely followed
    <!-- words RUN: METRIC, METRIC -->    what the data allow to say, arm by arm
    <!-- repeats RUN: METRIC -->         a row per arm: right answers, and those that do not repeat
    <!-- needed published -->            how many would tell published differences from noise
    <!-- shifts RUN -->                   the tokens that W delta raises and lowers most, arm by arm
    <!-- examples RUN: METRIC, ARM -->    the shortest answers that were gained and lost; of all
                                          arms where none is named
    <!-- screen FILE -->                  of scripts/screen_settings.py: the gains over no SLOT
    <!-- cost FILE -->                    of scripts/bench_serve.py: a row per arm
    <!-- floor FILE: FILE, ARM -->        what of a cost the floor of `bench optimize` leaves
    <!-- seconds DIRECTORY -->           how long each run in it took to answer
    <!-- machines DIRECTORY -->          what each run in it was made on
    <!-- settings request|engine -->      what slot_vllm/params.py declares: a row per setting
    <!-- releases ../releases -->         of run_vllm_release.py, check_vllm.py: a row per release
    <!-- failures ../releases -->         what failed there, or is missing, release by release
    <!-- architectures FILE -->           of check_architectures.py: a row per architecture
    <!-- end -->

Shares are in per cent, differences in points.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tables import (
    architectures,
    costs,
    instructions,
    published,
    releases,
    scores,
    screen,
    settings,
    texts,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{n}.md"
        for n in ("study", "study_examples", "settings", "releases", "architectures")
    ),
)
_BLOCK = re.compile(r"(<!-- (\w+) ([\w./-]+)(?:: ([^>]*))? -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS: dict[str, Callable[[Path, Sequence[str]], str]] = {
    kind.__name__: kind
    for kind in (
        *(scores.scores, scores.answers, scores.arms, scores.groups, scores.words),
        *(instructions.instructions, texts.repeats, texts.shifts, texts.examples),
        *(published.needed, screen.screen, settings.settings),
        *(costs.cost, costs.floor, costs.seconds, costs.machines),
        *(releases.releases, releases.failures, architectures.architectures),
    )
}


def filled(page: str) -> str:
    """The page's text with every block made again. Raises ValueError for a block of no kind."""

    def block(found: re.Match[str]) -> str:
        start, kind, run, named, end = found.groups()
        if kind not in _KINDS:
            raise ValueError(f"<!-- {kind} -->: no such block; allowed: {', '.join(_KINDS)}")
        names = [name.strip() for name in named.split(",")] if named else []
        directory = ROOT / "logs" / "reference" / run
        return f"{start}{_KINDS[kind](directory, names)}\n{end}"

    return _BLOCK.sub(block, page)


def main() -> None:
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
