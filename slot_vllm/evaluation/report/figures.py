"""The report's pictures."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from slot_vllm.evaluation.inspection_record import Inspection, TokenShift
from slot_vllm.evaluation.record import Cell, Compared, Sweep
from slot_vllm.evaluation.report import svg
from slot_vllm.evaluation.report.svg import BOTH, INK, LESS, MORE, MUTED, NEITHER, PAPER
from slot_vllm.evaluation.statistics import ALPHA, Numbers

# The scores of an arm and of the baseline, problem by problem.
Pair = tuple[Numbers, Numbers]

_PANELS_PER_ROW = 2
_SHADES = 48
_BARS = 25
# matplotlib draws no more in one direction.
_DPI, _MOST_PIXELS = 192, 60_000
# Where the numbers of problems gained and lost end, in widths of the axes.
_COLUMNS = (0.48, 0.63, 0.74, 1.0)


def differences(arms: Mapping[str, Compared]) -> Markup:
    """A forest plot: each arm's difference, with its interval and p."""
    figure, axes = svg.rows(len(arms), row=0.6)
    axes.axvline(0, color=MUTED, linewidth=1)
    for row, found in enumerate(arms.values()):
        difference, interval = found.difference or 0.0, found.difference_interval
        told = found.p_value_holm is not None and found.p_value_holm <= ALPHA
        colour = INK if not told else MORE if difference > 0 else LESS
        text = f"{difference:+.4f}"
        place = row + 0.28
        if interval is not None:
            axes.plot(interval, [place, place], color=colour, linewidth=2)
            text += f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
        if found.p_value_holm is not None:
            text += f", p = {found.p_value_holm:.2g}"
        axes.plot([difference], [place], "o", color=colour, markersize=5)
        _write(axes, row - 0.02, text)
    _name_rows(axes, arms, -0.3, 44)
    axes.set_xlabel("difference in score")
    return svg.inline(figure, "Differences with their intervals")


def gained_and_lost(pairs: Mapping[str, Pair]) -> Markup:
    """Per arm, the problems that both sides, one side and neither solved. Scores are 0 or 1."""
    kinds = {
        "both right": (1, 1, BOTH),
        "gained": (1, 0, MORE),
        "lost": (0, 1, LESS),
        "both wrong": (0, 0, NEITHER),
    }
    figure, axes = svg.rows(len(pairs), row=0.42)
    place = axes.get_yaxis_transform()
    for right, (kind, (_, _, colour)) in zip(_COLUMNS, kinds.items(), strict=True):
        _write(axes, -1.1, kind, right)
        ends = ([right - 0.09, right], [-0.75] * 2)
        axes.plot(*ends, color=colour, lw=4, transform=place, clip_on=False)
    for row, (arm, baseline) in enumerate(pairs.values()):
        start = 0
        for right, (here, there, colour) in zip(_COLUMNS, kinds.values(), strict=True):
            count = int(((arm == here) & (baseline == there)).sum())
            axes.barh(row + 0.2, count, left=start, height=0.4, color=colour)
            _write(axes, row - 0.22, str(count), right)
            start += count
    axes.set_xlim(0, max(len(arm) for arm, _ in pairs.values()))
    axes.grid(visible=False)
    _name_rows(axes, pairs, -0.22, 18)
    axes.set_xlabel("problems")
    return svg.inline(figure, "Problems gained and lost against the baseline")


def sorted_differences(pairs: Mapping[str, Pair]) -> Markup:
    """Per arm a panel: the problems' differences to the baseline, from the largest down."""
    lines = -(-len(pairs) // _PANELS_PER_ROW)
    columns = min(len(pairs), _PANELS_PER_ROW)
    figure = Figure(figsize=(svg.WIDTH / 2 * columns, 1.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    for panel in panels[len(pairs) - columns : len(pairs)]:
        panel.tick_params(labelbottom=True)
    for panel, (name, (arm, baseline)) in zip(panels, pairs.items(), strict=False):
        gains = np.sort(arm - baseline)[::-1]
        edges = np.arange(len(gains) + 1)
        steps = np.append(gains, gains[-1:])
        for side, colour in ((np.maximum, MORE), (np.minimum, LESS)):
            panel.fill_between(edges, side(steps, 0), step="post", color=colour, linewidth=0)
        panel.axhline(0, color=MUTED, linewidth=1)
        moved = f"{(gains > 0).sum()} up, {(gains < 0).sum()} down"
        panel.set_title(f"{svg.shortened(name, 18)}\n{moved}")
    figure.supxlabel("problems, sorted", fontsize="medium")
    figure.supylabel("difference in score", fontsize="medium")
    return svg.inline(figure, "Differences to the baseline, problem by problem")


def heat_map(sweep: Sweep) -> Markup:
    """Values over steps and learning rates, coloured by how far they are from the baseline's."""
    baseline = None if sweep.baseline is None else sweep.baseline.value
    values = [cell.value for cell in sweep.scored if cell.value is not None]
    rates = sorted({cell.lr or 0.0 for cell in sweep.scored})
    steps = sorted({cell.steps for cell in sweep.scored})
    if baseline is None:
        scale, colours = Normalize(min(values), max(values)), colormaps["viridis"]
    else:
        reach = max(abs(value - baseline) for value in values) or 1e-3
        scale, colours = Normalize(baseline - reach, baseline + reach), colormaps["RdBu"]
    figure = Figure(figsize=(0.68 * len(rates) + 1.0, 0.62 * len(steps) + 0.6))
    axes = figure.add_axes((0.0, 0.0, 0.85, 1.0))
    for cell, value in zip(sweep.scored, values, strict=True):
        column, row = rates.index(cell.lr or 0.0), steps.index(cell.steps)
        colour = colours(scale(value))
        dark = np.dot((0.2126, 0.7152, 0.0722), colour[:3]) < 0.45  # its luminance
        best = cell.arm == sweep.best
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, ec=PAPER, lw=1))
        if best:
            frame = Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, lw=2.5)
            frame.set_edgecolor("white" if dark else "black")
            axes.add_patch(frame)
        axes.text(
            column,
            row,
            _cell_text(cell, best),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
    axes.set_yticks(range(len(steps)), [str(count) for count in steps])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("steps")
    # Few enough colours that they are drawn as shapes, not as a picture in the picture.
    shades = ScalarMappable(scale, colours.resampled(_SHADES))
    bar = figure.colorbar(shades, cax=figure.add_axes((0.89, 0.0, 0.03, 1.0)))
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")
    if baseline is not None:
        bar.ax.axhline(baseline, color="black", linewidth=1.5)
    bar.set_label(sweep.metric + ("" if baseline is None else "\nline: baseline"))
    return svg.inline(figure, f"{sweep.task}: {sweep.metric} over steps and learning rate")


def prompt_loss(arms: Mapping[str, Pair]) -> Markup:
    """Per arm, how the problems' first losses and their last losses spread."""
    figure, axes = svg.rows(len(arms), row=0.5)
    for row, (first, last) in enumerate(arms.values()):
        _spread(axes, row + 0.02, first, BOTH)
        _spread(axes, row + 0.3, last, MORE)
        _write(axes, row - 0.28, f"{first.mean():.3f} → {last.mean():.3f}")
    _name_rows(axes, arms, -0.28)
    axes.set_xlabel("prompt loss, nats per token")
    return svg.inline(figure, "Prompt loss before and after SLOT")


def completion_length(arms: Mapping[str, Numbers], truncated: Mapping[str, float]) -> Markup:
    """Per arm, how the answers' lengths spread, and the share that was cut off."""
    figure, axes = svg.rows(len(arms), row=0.42)
    for row, (name, lengths) in enumerate(arms.items()):
        _spread(axes, row + 0.2, lengths, MORE, height=0.35)
        median = np.median(lengths)
        _write(axes, row - 0.22, f"median {median:.0f}, cut off {100 * truncated[name]:.0f} %")
    axes.set_xlim(left=0)
    _name_rows(axes, arms, -0.22)
    axes.set_xlabel("tokens per answer")
    return svg.inline(figure, "Completion length")


def logit_shifts(inspection: Inspection) -> Markup:
    """The tokens that delta raises most and lowers most, by the mean shift of their logits, less
    what is common to all tokens."""
    shifts = [*inspection.raised, *inspection.lowered]
    figure, axes = svg.rows(len(shifts), row=0.2, width=1.6)
    _draw_shifts(axes, inspection, shifts)
    return svg.inline(figure, f"Logit shifts, {inspection.arm}, {inspection.task}")


def shifts_chart(inspections: Sequence[Inspection]) -> Figure:
    """The same as a picture of its own, a panel per inspection, to be made and saved within
    ``svg.style``. At most 25 tokens on each side, from the most raised to the most lowered."""
    shown = [[*one.raised[:_BARS], *reversed(one.lowered[:_BARS])] for one in inspections]
    heights = [0.9 + 0.22 * max(len(shifts), 1) for shifts in shown]
    height = sum(heights)
    figure = Figure(
        figsize=(svg.WIDTH, height),
        dpi=min(_DPI, _MOST_PIXELS / height),
        facecolor=PAPER,
        layout="constrained",
    )
    panels = figure.subplots(len(shown), squeeze=False, height_ratios=heights)[:, 0]
    for panel, inspection, shifts in zip(panels, inspections, shown, strict=True):
        panel.set_ylim(len(shifts) - 0.5, -0.5)
        _draw_shifts(panel, inspection, shifts)
        counted = "1 prompt" if inspection.problems == 1 else f"mean over {inspection.problems}"
        panel.set_title(f"{inspection.arm} · {inspection.task} ({counted})")
    return figure


def _draw_shifts(axes: Axes, inspection: Inspection, shifts: Sequence[TokenShift]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1)
    for row, shift in enumerate(shifts):
        moved = inspection.less_mean(shift)
        axes.barh(row, moved, height=0.7, color=MORE if moved > 0 else LESS)
        _write(axes, row, f"{moved:+.3f}", 1.35)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_yticks(range(len(shifts)), [svg.shortened(s.token, 18) for s in shifts])
    axes.set_xlabel("mean shift of the logit")


def _name_rows(axes: Axes, names: Iterable[str], above: float, limit: int = 22) -> None:
    """Names at the left, ``above`` the middle of their rows."""
    axes.set_yticks([])
    for row, name in enumerate(names):
        _write(axes, row + above, svg.shortened(name, limit), 0.0, "left")


def _write(axes: Axes, row: float, text: str, x: float = 1.0, align: str = "right") -> None:
    """Text in a row; x: in widths of the axes."""
    axes.text(x, row, text, transform=axes.get_yaxis_transform(), ha=align, va="center")


def _spread(axes: Axes, row: float, values: Numbers, colour: str, height: float = 0.26) -> None:
    """Line: 5th to 95th percentile; bar: quartiles; tick: median; dot: mean."""
    low, lower, median, upper, high = np.percentile(values, [5, 25, 50, 75, 95])
    axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
    axes.barh(row, upper - lower, left=lower, height=height, color=colour)
    axes.plot([median] * 2, [row - height / 2, row + height / 2], color=INK, linewidth=2)
    axes.plot([values.mean()], [row], "o", color=PAPER, mec=INK, markersize=4)


def _cell_text(cell: Cell, best: bool) -> str:
    lines = [f"{cell.value:.3f}"]
    if cell.difference is not None:
        told = cell.p_value_holm is not None and cell.p_value_holm <= ALPHA
        lines.append(f"{cell.difference:+.3f}{'*' if told else ''}")
    return "\n".join([*lines, *(["best"] if best else [])])
