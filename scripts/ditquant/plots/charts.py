"""One style for the charts of the evaluation and of the weights, as SVG for a page and as PNG.

Variants are told apart by colour, marker and line at once. The colours are Okabe and Ito's, which
the colour-blind tell apart. The same data give the same bytes: no date, and ids from a fixed salt.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from contextlib import ContextDecorator
from typing import Any, Literal, TypedDict

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..planning.variants import FULL, NOISE_FLOOR
from ..readable import fmt

# A colour that no plot uses; a page exchanges it for its own ink, light or dark.
_INK = "#0a0b0c"
_FONT = "DejaVu Sans"

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY = "#7f7f7f"
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*", "h", "p")
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))

_COORDINATES = re.compile(r'\s(?:d|x|y)="[^"]*"')

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ditquant",
    "font.family": "sans-serif",
    "font.sans-serif": [_FONT],
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#8888884d",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelspacing": 0.35,
}


def styled() -> ContextDecorator:
    """The common style, as a decorator of a function that draws."""
    return mpl.rc_context(_STYLE)


@styled()
def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one plot in the common style; sizes in inches."""
    chart = Figure(figsize=(width, height), layout="constrained")
    return chart, chart.subplots()


@styled()
def panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """A figure of plots beside each other that share the vertical axis; sizes in inches."""
    chart = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.04))
    return chart, list(chart.subplots(1, count, sharey=True, squeeze=False)[0])


def _tick(value: float, position: int) -> str:
    """0.02, 5 × 10⁻⁷."""
    if value >= 1e-4:
        return f"{value:g}"
    mantissa, exponent = fmt(value, "sig").split(" × ")
    mantissa = mantissa.removesuffix(".0")
    return exponent if mantissa == "1" else f"{mantissa} × {exponent}"


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, with labels that fit; to be called after the data are drawn."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    # Within two decades powers of ten alone would leave an axis with one label or none.
    labelled = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axis.set_major_locator(LogLocator(subs=labelled, numticks=12))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_locator(LogLocator(subs=np.arange(1.0, 10.0), numticks=12))
    axis.set_minor_formatter(NullFormatter())


def legend_height(count: int, columns: int) -> float:
    """Inches that `legend_below` takes."""
    return 0.12 + 0.185 * -(-count // columns)


@styled()
def legend_below(chart: Figure, axes: Axes, columns: int) -> None:
    """A legend of the lines of `axes` under the whole figure: it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        chart.legend(handles, labels, loc="outside lower center", ncols=columns)


@styled()
def as_svg(chart: Figure) -> str:
    """The figure as an <svg> element, complete in itself."""
    text = io.StringIO()
    chart.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return _COORDINATES.sub(_shortened, svg[svg.index("<svg") :])


def _shortened(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point: a third of the file is digits that nobody sees."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0])


@styled()
def as_png(chart: Figure) -> bytes:
    """The figure as a PNG file on white, 200 pixels an inch."""
    content = io.BytesIO()
    options = {"facecolor": "white", "metadata": {"Software": None}}
    chart.savefig(content, format="png", dpi=200, **options)
    return content.getvalue()


def for_page(svg: str) -> str:
    """What `as_svg` gave, taking the ink (`currentColor`) and the font of the page around it."""
    svg = svg.replace(_INK, "currentColor").replace(f"'{_FONT}', sans-serif", "inherit")
    return svg.replace(f"'{_FONT}'", "inherit")


class LineStyle(TypedDict):
    """Options of `Axes.plot`."""

    color: str
    marker: str
    linestyle: Any


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """The looks of up to 24 variants, all different; grey for the noise floor.

    The same variants always look the same.
    """
    others = [name for name in names if name not in (FULL, NOISE_FLOOR)]
    styles: dict[str, LineStyle] = {
        name: {
            "color": PALETTE[index % len(PALETTE)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _LINES[index // len(PALETTE) % len(_LINES)],
        }
        for index, name in enumerate(others)
    }
    return {**styles, NOISE_FLOOR: {"color": _GREY, "marker": ".", "linestyle": (0, (2, 2))}}
