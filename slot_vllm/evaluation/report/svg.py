"""How figures look; and figures as SVG inside a page, with the same bytes every time."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The page's light scheme. In a page its CSS variables take their place, which follow the light or
# the dark scheme; so no other colour, such as white, may be one of these.
INK, MUTED, FAINT, PAPER = "#1b1f24", "#59636e", "#dfe3e8", "#fffffe"
MORE, LESS, BOTH, NEITHER = "#1f6fc4", "#c4540a", "#6f7d8c", "#b9c1ca"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--faint",
    PAPER: "--paper",
    MORE: "--more",
    LESS: "--less",
    BOTH: "--both",
    NEITHER: "--neither",
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "slot-vllm",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    # Names and tokens may hold dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "figure.facecolor": "none",
    "figure.dpi": 96,
}


@contextmanager
def style() -> Iterator[None]:
    """Figures are made, and turned into SVG, within this."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The browser has fonts for scripts that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


# As wide as a telephone shows at its full size, inches; wider screens show several side by side.
WIDTH = 3.5


def rows(count: int, row: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Axes for one horizontal row per arm, as high as that needs; inches."""
    height = row * max(count, 1)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def inline(figure: Figure, title: str) -> Markup:
    """The figure as an ``svg`` element, cut to what is drawn; title: for screen readers."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", svg, count=3)
    # Several figures share a page: only what is referred to keeps its id.
    referred = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in referred else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = Markup.escape(title)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def shortened(name: str, limit: int) -> str:
    """Names of a sweep's arms differ at their end, so it is the middle that goes."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 3]}…{name[len(name) - limit + limit // 3 + 1 :]}"
