"""One style for the charts that go into the report's page, as SVG text.

Ink is `currentColor` (the page's own, light or dark) and the colours are Okabe and Ito's, which the
colour-blind tell apart. The same data give the same bytes: no date, and ids from a fixed salt.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ContextDecorator

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# A colour that no plot uses; `as_svg` exchanges it.
_INK = "#0a0b0c"

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
NOISE_FLOOR = "#7f7f7f"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ditquant",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#8888884d",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


def styled() -> ContextDecorator:
    """The common style, as a decorator of a function that draws."""
    return plt.rc_context(_STYLE)


@styled()
def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one plot in the common style; sizes in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")


@styled()
def as_svg(chart: Figure) -> str:
    """The figure as an <svg> element for a page, which scales and takes the page's ink and font."""
    text = io.StringIO()
    chart.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    plt.close(chart)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace(_INK, "currentColor").replace("'DejaVu Sans'", "inherit")


def variant_colors(names: Sequence[str]) -> dict[str, str]:
    """One colour a variant, grey for the noise floor; the same variants always look the same."""
    others = [name for name in names if name not in ("full", "noise-floor")]
    colors = {name: PALETTE[index % 6] for index, name in enumerate(others)}
    return {**colors, "noise-floor": NOISE_FLOOR, "full": NOISE_FLOOR}
