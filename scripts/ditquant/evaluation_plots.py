"""Plots of an evaluation as SVG text: errors by variant, and errors along the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .charts import as_svg, figure, styled, variant_colors

Document = Mapping[str, Any]


def _compared(documents: Sequence[Document]) -> list[Document]:
    """All but `full`, whose errors are zero and have no place on a logarithmic axis."""
    return [document for document in documents if document["variant"] != "full"]


def _strip(axes: Axes, rows: Sequence[np.ndarray], colors: Sequence[str]) -> None:
    """Every caption as a dot, the median as a bar; the first row is on top."""
    for height, (values, color) in enumerate(zip(rows, colors, strict=True)):
        count = len(values)
        if count == 0:
            continue
        # An even spread in a fixed order: dots do not hide each other, and nothing is random.
        offsets = np.linspace(-0.24, 0.24, count) if count > 1 else np.zeros(1)
        axes.plot(values, height + offsets, "o", color=color, ms=4, alpha=0.55, mew=0)
        median = float(np.median(values))
        axes.plot([median, median], [height - 0.36, height + 0.36], color=color, lw=2.6)
    axes.set_ylim(len(rows) - 0.45, -0.55)


_SCORES = {
    "latent_relative_error": "latent relative error (left is better)",
    "psnr": "PSNR in dB (right is better)",
}


@styled()
def plot_scores(documents: Sequence[Document], key: str) -> str:
    """One score of every caption, one row a variant.

    Args:
        documents: evaluations (format "ditquant.evaluation") of the same captions.
        key: "latent_relative_error" or "psnr"; equal pictures have no finite PSNR and no dot.
    """
    shown = _compared(documents)
    names = [document["variant"] for document in shown]
    colors = variant_colors(names)
    chart, axes = figure(4.9, 0.9 + 0.42 * len(names))
    rows = [
        np.array([caption[key] for caption in document["captions"] if caption[key] is not None])
        for document in shown
    ]
    _strip(axes, rows, [colors[name] for name in names])
    if key == "latent_relative_error":
        axes.set_xscale("log")
    axes.set_xlabel(_SCORES[key])
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return as_svg(chart)


_CURVES = {
    "velocity_errors": "relative velocity error",
    "divergence": "relative distance of latents",
}


@styled()
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
