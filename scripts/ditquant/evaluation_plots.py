"""Charts of an evaluation: errors by variant, by block, along the schedule, and against size.

Every function takes the evaluations (format "ditquant.evaluation") of the same captions, in the
order of the table, and gives a figure. `full` is never shown: its errors are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .charts import (
    figure,
    legend_below,
    legend_height,
    line_styles,
    panels,
    styled,
    variant_colors,
)
from .metrics import bootstrap_interval

Document = Mapping[str, Any]

_SIGMA = "sigma (1: noise, 0: picture)"


def _compared(documents: Sequence[Document]) -> list[Document]:
    """All but `full`, whose errors are zero and have no place on a logarithmic axis."""
    return [document for document in documents if document["variant"] != "full"]


def _names(documents: Sequence[Document]) -> list[str]:
    return [document["variant"] for document in documents]


# ----------------------------------------------------------------------------- every caption


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
def plot_scores(documents: Sequence[Document], key: str) -> Figure:
    """One score of every caption, one row a variant.

    Args:
        key: "latent_relative_error" or "psnr"; equal pictures have no finite PSNR and no dot.
    """
    shown = _compared(documents)
    names = _names(shown)
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
    return chart


# ------------------------------------------------------------------------- along the schedule


def _sigma_axis(axes: Axes) -> None:
    axes.set_xlim(1.03, -0.03)
    axes.set_xlabel(_SIGMA)
    axes.grid(axis="y")


_CURVES = {
    "velocity_errors": "relative velocity error",
    "divergence": "relative distance of latents",
}


@styled()
def plot_sigma_curves(documents: Sequence[Document], key: str) -> Figure:
    """Medians over captions against sigma, from noise (left) to picture (right).

    Args:
        key: "velocity_errors" (one step's error, at the reference's latents) or "divergence" (of
            the free-running latents; the first step starts from the same noise).
    """
    shown = _compared(documents)
    styles = line_styles(_names(shown))
    chart, axes = figure(4.7, 3.1 + legend_height(len(shown), 2))
    for document in shown:
        name = document["variant"]
        curves = np.array([caption[key] for caption in document["captions"]], dtype=np.float64)
        middle = np.median(curves, axis=0)
        middle[middle <= 0] = np.nan
        axes.plot(document["measured_sigmas"], middle, ms=4, lw=1.4, label=name, **styles[name])
    axes.set_yscale("log")
    axes.set_ylabel(_CURVES[key])
    _sigma_axis(axes)
    legend_below(chart, axes, 2)
    return chart


# --------------------------------------------------------------------------------- by block


def _streams(document: Document) -> dict[str, dict[str, np.ndarray]]:
    """Stream ("img") -> block -> dB of every measured step; nan where nothing was lost."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, decibels in document["block_sqnr"]["streams"].items():
        block, stream = name.split(".")
        values = [np.nan if value is None else value for value in decibels]
        found.setdefault(stream, {})[block] = np.array(values, dtype=np.float64)
    return found


def _measured(documents: Sequence[Document]) -> list[Document]:
    return [document for document in _compared(documents) if document.get("block_sqnr")]


def _median(values: np.ndarray) -> float:
    """Over the steps at which something was lost; nan if there is none."""
    finite = values[~np.isnan(values)]
    return float(np.median(finite)) if finite.size else float("nan")


_STREAM_TITLES = {"img": "image stream", "txt": "text stream", "uni": "unified stream"}
_DECIBELS = "SQNR in dB (higher is better)"


@styled()
def plot_block_sqnr(documents: Sequence[Document]) -> Figure:
    """SQNR of every block's output, the median over the measured steps; one panel a stream."""
    shown = _measured(documents)
    styles = line_styles(_names(_compared(documents)))
    streams = {document["variant"]: _streams(document) for document in shown}
    kinds = list(next(iter(streams.values()), {"img": {}}))
    chart, axes = panels(9.6, 3.1 + legend_height(len(shown), 4), len(kinds))
    for panel, kind in zip(axes, kinds, strict=True):
        blocks: list[str] = []
        for name, found in streams.items():
            blocks = list(found[kind])
            values = [_median(decibels) for decibels in found[kind].values()]
            panel.plot(range(len(blocks)), values, ms=4.5, lw=1.3, label=name, **styles[name])
        every = 1 if len(blocks) <= 12 else 2
        panel.set_xticks(range(0, len(blocks), every), blocks[::every])
        panel.tick_params(axis="x", rotation=90 if len(blocks) > 8 else 0)
        panel.set_title(_STREAM_TITLES[kind])
        panel.grid(axis="y")
    axes[0].set_ylabel(_DECIBELS)
    legend_below(chart, axes[0], 4)
    return chart


@styled()
def plot_sqnr_by_sigma(documents: Sequence[Document]) -> Figure:
    """SQNR of the image stream behind the last block, against sigma."""
    shown = _measured(documents)
    styles = line_styles(_names(_compared(documents)))
    chart, axes = figure(4.7, 3.1 + legend_height(len(shown), 2))
    for document in shown:
        name, streams = document["variant"], _streams(document)
        last = list(streams.get("uni", streams["img"]).values())[-1]
        axes.plot(document["measured_sigmas"], last, ms=4, lw=1.4, label=name, **styles[name])
    axes.set_ylabel(_DECIBELS)
    _sigma_axis(axes)
    legend_below(chart, axes, 2)
    return chart


# ----------------------------------------------------------------------------- against size


def _dodged(sizes: Sequence[float], step: float) -> list[float]:
    """Equal sizes moved apart by `step`, around their place."""
    places = []
    for index, size in enumerate(sizes):
        rank = sum(other == size for other in sizes[:index])
        places.append(size + step * (rank - (sum(other == size for other in sizes) - 1) / 2))
    return places


@styled()
def plot_size(documents: Sequence[Document]) -> Figure:
    """Median latent error with its interval against the bytes of the model, of quantized models."""
    shown = [document for document in _compared(documents) if document["variant"] != "noise-floor"]
    styles = line_styles(_names(_compared(documents)))
    sizes = [document["model_bytes"] / 1e6 for document in shown]
    smallest, largest = min(sizes, default=0.0), max(sizes, default=1.0)
    span = max(largest - smallest, 0.1 * largest)
    chart, axes = figure(4.7, 3.1 + legend_height(len(shown), 2))
    for document, place in zip(shown, _dodged(sizes, 0.025 * span), strict=True):
        name = document["variant"]
        errors = np.array([caption["latent_relative_error"] for caption in document["captions"]])
        low, high = bootstrap_interval(errors, np.median)
        color, marker = styles[name]["color"], styles[name]["marker"]
        axes.plot([place, place], [low, high], color=color, lw=1.1, alpha=0.7)
        axes.plot(place, np.median(errors), marker, color=color, ms=6.5, label=name)
    axes.set_xlim(smallest - 0.25 * span, largest + 0.25 * span)
    axes.set_yscale("log")
    axes.set_xlabel("size of the MM-DiT in MB (left is better)")
    axes.set_ylabel("median latent error")
    axes.grid(axis="both")
    legend_below(chart, axes, 2)
    return chart


# ------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class Chart:
    """One chart of the evaluation.

    Attributes:
        title, note: over it in the report.
        draw: from the evaluations.
        wide: needs the page's whole width.
    """

    title: str
    note: str
    draw: Callable[[Sequence[Document]], Figure]
    wide: bool = False


CHARTS = {
    "errors": Chart(
        "Distance of the final latents.",
        "One dot a caption, the bar is the median.",
        partial(plot_scores, key="latent_relative_error"),
    ),
    "psnr": Chart(
        "Distance of the pictures.",
        "One dot a caption, the bar is the median.",
        partial(plot_scores, key="psnr"),
    ),
    "velocity": Chart(
        "What one step adds.",
        "Error of single steps at full precision's latents.",
        partial(plot_sigma_curves, key="velocity_errors"),
    ),
    "divergence": Chart(
        "How errors add up.",
        "Distance of the free-running latents, relative.",
        partial(plot_sigma_curves, key="divergence"),
    ),
    "blocks": Chart(
        "Signal to noise behind every block.",
        "Of the streams that leave it, at full precision's latents; the median over the steps.",
        plot_block_sqnr,
        wide=True,
    ),
    "block-sigma": Chart(
        "Signal to noise behind the last block.",
        "Of the image stream, along the schedule.",
        plot_sqnr_by_sigma,
    ),
    "size": Chart(
        "Size against quality.",
        "Equal sizes stand beside each other; bars are 95 % intervals of the median.",
        plot_size,
    ),
}
