"""What the page says about one task of one run."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from slot_vllm.evaluation import statistics
from slot_vllm.evaluation.comparison import paired
from slot_vllm.evaluation.record import BASELINE, CUT_OFF, Group, Result, Sweep
from slot_vllm.evaluation.report import figures
from slot_vllm.evaluation.report.figures import Pair
from slot_vllm.evaluation.statistics import ALPHA, Interval, Numbers
from slot_vllm.evaluation.stored_run import StoredPart, StoredRun


@dataclass(frozen=True)
class Answers:
    """How long an arm's answers are and how many of them ended at the token limit.

    truncated_interval: of the share that was cut off, over problems.
    """

    arm: str
    tokens: Numbers
    prompt_tokens: int
    truncated: int
    truncated_interval: Interval | None

    @property
    def percentiles(self) -> list[float]:
        """The 5th, 25th, 50th, 75th and 95th."""
        return [float(value) for value in np.percentile(self.tokens, [5, 25, 50, 75, 95])]


@dataclass(frozen=True)
class TaskSection:
    """pairs: each arm's scores and the baseline's, on the problems that both answered. losses: each
    arm's prompt losses before and after SLOT, one per problem. sweeps: each with the best setting's
    result on problems that had no part in the selection, if there are such."""

    run: StoredRun
    task: str
    entries: list[Result]
    pairs: dict[str, Pair]
    losses: dict[str, Pair]
    answers: list[Answers]
    sweeps: list[tuple[Sweep, Result | None]]

    @property
    def compared(self) -> list[Result]:
        return [entry for entry in self.entries if entry.words]

    @property
    def told(self) -> list[Result]:
        """The arms that differ from the baseline in the first metric, after correction."""
        p_values = [(entry, entry.p_value_holm) for entry in self.compared]
        return [entry for entry, p in p_values if p is not None and p <= ALPHA]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for entry in self.entries for metric in entry.metrics))

    @property
    def methods(self) -> list[str]:
        """How differences came about."""
        used = [found.method for entry in self.compared for found in entry.metrics.values()]
        used += [entry.method for entry in self.compared]
        return [method for method in dict.fromkeys(used) if method]

    @property
    def other_figures(self) -> list[tuple[str, Markup]]:
        """The differences in each metric but the first."""
        found = []
        for metric in self.metrics:
            arms = {e.name: e.metrics[metric] for e in self.compared if metric in e.metrics}
            arms = {name: one for name, one in arms.items() if one.difference is not None}
            if arms and metric != self.compared[0].metric:
                found.append((metric, figures.differences(arms)))
        return found

    @property
    def right_or_wrong(self) -> bool:
        return all(statistics.right_or_wrong(*pair) for pair in self.pairs.values())

    @property
    def breakdowns(self) -> dict[str, dict[str, list[tuple[str, Group]]]]:
        """By split and by the group's name: each arm and its result."""
        found: dict[str, dict[str, list[tuple[str, Group]]]] = {}
        for entry in self.entries:
            for split, groups in entry.breakdown.items():
                for name, group in groups.items():
                    rows = found.setdefault(split, {}).setdefault(name, [])
                    rows.append((entry.name, group))
        return found

    @property
    def differences_figure(self) -> Markup | None:
        arms = {e.name: e for e in self.entries if e.difference is not None}
        return figures.differences(arms) if arms else None

    @property
    def paired_figure(self) -> Markup | None:
        if not self.pairs:
            return None
        draw = figures.gained_and_lost if self.right_or_wrong else figures.sorted_differences
        return draw(self.pairs)

    @property
    def length_figure(self) -> Markup:
        return figures.completion_length(
            {answers.arm: answers.tokens for answers in self.answers},
            {answers.arm: answers.truncated / len(answers.tokens) for answers in self.answers},
        )


def section(run: StoredRun, task: str) -> TaskSection:
    """Of the run's results and samples."""
    parts, baseline = run.of_task(task), run.baseline(task)
    others = [part for part in parts if part.arm != BASELINE]
    own = baseline.scores_in() if baseline else {}
    pairs = {part.arm: paired(part.scores_in(), own) for part in others}
    losses = {part.arm: _losses(part) for part in others}
    entries: dict[str | None, Result] = {part.arm: part.entry for part in parts if part.entry}
    return TaskSection(
        run=run,
        task=task,
        entries=list(entries.values()),
        pairs={arm: pair for arm, pair in pairs.items() if len(pair[0])},
        losses={arm: pair for arm, pair in losses.items() if len(pair[0])},
        answers=[_answers(part) for part in parts],
        sweeps=[
            (sweep, None if sweep.on_test_data else entries.get(sweep.best))
            for sweep in run.results.sweeps
            if sweep.task == task and sweep.scored
        ],
    )


def _losses(part: StoredPart) -> Pair:
    known = [
        (sample.first_loss, sample.last_loss)
        for sample in part.problems.values()
        if sample.first_loss is not None and sample.last_loss is not None
    ]
    first, last = np.array(known, float).reshape(-1, 2).T
    return first, last


def _answers(part: StoredPart) -> Answers:
    shares = list(part.scores_in(CUT_OFF).values())
    return Answers(
        arm=part.arm,
        tokens=np.array([sample.generated_tokens for sample in part.samples], float),
        prompt_tokens=sum(sample.prompt_tokens for sample in part.problems.values()),
        truncated=sum(sample.cut_off for sample in part.samples),
        truncated_interval=statistics.mean_interval(np.array(shares)),
    )
