"""The tables and the words on the terminal."""

from collections.abc import Container, Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slot_vllm.evaluation.record import BASELINE, Compared, Estimate, Result, RunRecord
from slot_vllm.evaluation.statistics import Interval

_WIDE = 200
_SCORES = ("task", "metric", "arm", "setting", "value", "difference", "p (Holm)")
_COSTS = ("task", "arm", "problems", "tokens", "prompt loss")
_TEXTS = {"task", "metric", "arm", "setting"}


def scores_table(results: Sequence[Result]) -> Table:
    """A block per task and metric, its arms below each other."""
    grid = new_table(_SCORES, _TEXTS)
    for task in dict.fromkeys(row.task for row in results):
        of_task = [row for row in results if row.task == task]
        for metric in dict.fromkeys(metric for row in of_task for metric in row.metrics):
            for row in of_task:
                found = row.metrics.get(metric)
                if found is None:
                    continue
                label = f"{metric} (less is better)" if found.lower_is_better else metric
                holm = "-" if found.p_value_holm is None else f"{found.p_value_holm:.2g}"
                numbers = (_value(found), _difference(found), holm)
                grid.add_row(task, label, row.name, _setting(row), *numbers)
            grid.add_section()
    return grid


def costs_table(results: Sequence[Result]) -> Table:
    """A block per task: how much was asked and answered."""
    grid = new_table(_COSTS, _TEXTS)
    for task in dict.fromkeys(row.task for row in results):
        of_task = [row for row in results if row.task == task]
        for row in of_task:
            loss = "-"
            if row.first_loss is not None and row.last_loss is not None:
                loss = f"{row.first_loss:.3f} → {row.last_loss:.3f}"
            problems = str(row.samples)
            problems += f" ({row.unscored} not scored)" if row.unscored else ""
            grid.add_row(task, row.name, problems, str(row.generated_tokens), loss)
        grid.add_section()
    return grid


def groups_table(results: Sequence[Result], column: str) -> Table:
    """The results by the groups of one column: a row per group, arms beside each other."""
    grid = new_table((column, "problems", *(row.name for row in results)), {column})
    for group in dict.fromkeys(group for row in results for group in row.breakdown[column]):
        found = [row.breakdown[column].get(group) for row in results]
        count = max(figures.samples for figures in found if figures is not None)
        values = ("-" if figures is None else _value(figures) for figures in found)
        grid.add_row(group, str(count), *values)
    return grid


def show(run: RunRecord) -> None:
    """Prints the tables, as wide as needed where no terminal limits them, and the words."""
    console = terminal()
    console.print(scores_table(run.arms))
    console.print(costs_table(run.arms))
    if run.seconds:
        console.print(f"all answers took {run.seconds:.0f} s", highlight=False)
    cells = {cell.arm for sweep in run.sweeps for cell in sweep.cells}
    cells -= {sweep.best for sweep in run.sweeps if sweep.best is not None}
    rows = [row for row in run.arms if row.name == BASELINE or row.name not in cells]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        columns = dict.fromkeys(column for row in of_task for column in row.breakdown)
        for column in columns:
            if all(column in row.breakdown for row in of_task) and column != "finish_reason":
                console.print(groups_table(of_task, column))
    for row in rows:
        if row.said:
            words = [f"{row.task}, {row.name} against the baseline:"]
            words += [f"  {metric}: {said}" for metric, said in row.said.items()]
            console.print("\n".join(words), highlight=False, markup=False)
    for sweep in run.sweeps:
        console.print(sweep.words, highlight=False, markup=False)


def terminal(width: int = _WIDE) -> Console:
    """Standard output; width: where no terminal limits it, in characters."""
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


def new_table(
    columns: Iterable[str], texts: Container[str], title: str = "", caption: str | None = None
) -> Table:
    """texts: the columns that hold no numbers."""
    grid = Table(box=SIMPLE, title_justify="left", title=Text(title) or None, caption=caption)
    for name in columns:
        # Where it is narrow, text is folded, never cut.
        grid.add_column(name, overflow="fold", justify="left" if name in texts else "right")
    return grid


def _setting(row: Result) -> str:
    """Steps and lr, and the control."""
    slot = [f"{row.steps}, {row.lr:g}"] if row.steps else []
    control = [row.arm.control.words] if row.arm and row.arm.control else []
    return " + ".join([*slot, *control]) or "-"


def _value(figures: Estimate) -> str:
    if figures.value is None:
        return "-"
    return f"{figures.value:.4f}{_bounds(figures.interval, '.4f')}"


def _difference(figures: Compared) -> str:
    if figures.difference is None:
        return "-"
    return f"{figures.difference:+.4f}{_bounds(figures.difference_interval, '+.4f')}"


def _bounds(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
