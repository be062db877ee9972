"""Plots of an evaluation as SVG text: errors by variant, and errors along the schedule.

They go into the report's page as they are, so ink is `currentColor` (the page's own, light or dark)
and the colours are Okabe and Ito's, which the colour-blind tell apart. The same data give the same
bytes: no date, and element ids from a fixed salt.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

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

Document = Mapping[str, Any]


def figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in the common style, in inches, and its axes."""
    with plt.rc_context(_STYLE):
        return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **options)


def as_svg(chart: Figure) -> str:
    """The figure as an <svg> element for a page, which scales and takes the page's ink and font."""
    text = io.StringIO()
    with plt.rc_context(_STYLE):
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


def _compared(documents: Sequence[Document]) -> list[Document]:
    """All but `full`, whose errors are zero and have no place on a logarithmic axis."""
    return [document for document in documents if document["variant"] != "full"]


def _strip(axes: Axes, rows: Sequence[np.ndarray], colors: Sequence[str]) -> None:
    """Every caption as a dot, the median as a bar; the first row is on top."""
    for height, (values, color) in enumerate(zip(rows, colors, strict=True)):
        count = len(values)
        # An even spread in a fixed order: dots do not hide each other, and nothing is random.
        offsets = np.linspace(-0.24, 0.24, count) if count > 1 else np.zeros(1)
        axes.plot(values, height + offsets, "o", color=color, ms=4, alpha=0.55, mew=0)
        median = float(np.median(values))
        axes.plot([median, median], [height - 0.36, height + 0.36], color=color, lw=2.6)
    axes.set_ylim(len(rows) - 0.45, -0.55)


def plot_errors(documents: Sequence[Document]) -> str:
    """Latent relative error and PSNR of every caption, one row a variant.

    Args:
        documents: evaluations (format "ditquant.evaluation") of the same captions.
    """
    shown = _compared(documents)
    names = [document["variant"] for document in shown]
    colors = [variant_colors(names)[name] for name in names]
    chart, (left, right) = figure(9.6, 1.1 + 0.46 * len(names), columns=2, sharey=True)
    errors = [[c["latent_relative_error"] for c in d["captions"]] for d in shown]
    _strip(left, [np.array(values) for values in errors], colors)
    left.set_xscale("log")
    left.set_xlabel("latent relative error (left is better)")
    left.set_yticks(range(len(names)), names)
    psnrs = [[c["psnr"] for c in d["captions"] if c["psnr"] is not None] for d in shown]
    _strip(right, [np.array(values or [np.nan]) for values in psnrs], colors)
    right.set_xlabel("PSNR in dB (right is better)")
    for axes in (left, right):
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return as_svg(chart)


_CURVES = {
    "velocity_errors": "relative velocity error",
    "divergence": "relative distance of latents",
}


def plot_sigma_curves(documents: Sequence[Document], key: str) -> str:
    """Medians over captions against sigma, from noise (left) to picture (right).

    Args:
        key: "velocity_errors" (one step's error, at the reference's latents) or "divergence" (of
            the free-running latents; the first step starts from the same noise).
    """
    shown = _compared(documents)
    colors = variant_colors([document["variant"] for document in shown])
    chart, axes = figure(4.7, 3.3)
    for document in shown:
        name = document["variant"]
        curves = np.array([caption[key] for caption in document["captions"]], dtype=np.float64)
        middle = np.median(curves, axis=0)
        middle[middle <= 0] = np.nan
        dashes = "--" if name == "noise-floor" else "-"
        axes.plot(
            document["measured_sigmas"], middle, dashes, marker="o", ms=3.5, lw=1.6,
            color=colors[name], label=name,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(1.03, -0.03)
    axes.set_xlabel("sigma (1: noise, 0: picture)")
    axes.set_ylabel(_CURVES[key])
    axes.grid(axis="y")
    axes.legend(fontsize=8.5, labelspacing=0.35)
    return as_svg(chart)
