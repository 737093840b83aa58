"""How many problems would tell the published differences from noise."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.evaluation.published_table import PROBLEMS, PublishedRun, read
from slot_vllm.evaluation.statistics import problems_needed_unpaired
from tables.markdown import table


def needed(_: Path, __: Sequence[str]) -> str:
    by_task: dict[str, dict[str, list[PublishedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in read():
        by_task[run.task][run.model].append(run)
    rows = []
    for task, models in by_task.items():
        gains, needed, both = [], [], 0
        for runs in models.values():
            # Of some models the logs have one side alone.
            without = max((run.accuracy for run in runs if not run.steps), default=None)
            best = max((run.accuracy for run in runs if run.steps), default=None)
            both += without is not None and best is not None
            if without is not None and best is not None and best > without:
                gains.append(100 * (best - without))
                needed.append(problems_needed_unpaired(best, without) or 0)
        rows.append(
            [
                f"`{task}`",
                PROBLEMS[task],
                f"{len(gains)} of {both}",
                f"{min(gains):.1f} to {max(gains):.1f}",
                f"{min(needed)} to {max(needed)}, median {statistics.median(needed):.0f}",
            ]
        )
    heading = ["task", "its problems", "models that gain", "gain in points", "problems needed"]
    return table(heading, rows)
