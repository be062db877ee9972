"""Charts of an evaluation: errors by variant, by block, along the schedule, and against size.

`evaluation_charts` lists them all.

Every function takes the evaluations (format "ditquant.evaluation") of the same captions, in the
order of the table, and gives a figure. `full` is never shown: its errors are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import bootstrap_interval
from ..readable import fmt
from .charts import (
    figure,
    legend_below,
    legend_height,
    line_styles,
    log_axis,
    panels,
    styled,
    variant_colors,
)

Document = Mapping[str, Any]

_SIGMA = "sigma (1: noise, 0: picture)"
_FLOOR = "noise-floor"


def compared(documents: Sequence[Document]) -> list[Document]:
    """All but `full`, whose errors are zero and have no place on a logarithmic axis."""
    return [document for document in documents if document["variant"] != "full"]


def variants_of(documents: Sequence[Document]) -> list[str]:
    return [document["variant"] for document in documents]


# --------------------------------------------------------------------------- the noise floor


def _finite(values: Iterable[np.ndarray]) -> np.ndarray:
    """All numbers of some arrays, without nan."""
    joined = np.concatenate([np.zeros(0), *(np.ravel(array) for array in values)])
    return joined[~np.isnan(joined)]


def _far_floor(curves: Mapping[str, np.ndarray], log: bool) -> np.ndarray | None:
    """The noise floor's numbers, if they would take more than half of an axis shared with the rest.

    Then it is stated and not drawn: float16 is often some decades from what quantization does, and
    the variants would be indistinguishable.
    """
    floor = _finite([curves[_FLOOR]] if _FLOOR in curves else [])
    others = _finite(values for name, values in curves.items() if name != _FLOOR)
    if floor.size == 0 or others.size == 0:
        return None

    def extent(values: np.ndarray) -> float:
        # Zero is beyond every logarithmic axis.
        return float(np.ptp(np.log10(np.maximum(values, 1e-30)) if log else values))

    # One decade or 10 dB is what the others take at the least.
    usual = max(extent(others), 1.0 if log else 10.0)
    return floor if extent(np.concatenate([floor, others])) > 2 * usual else None


def _range(values: np.ndarray, how: str) -> str:
    low, high = (fmt(float(end), how) for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


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


@dataclass(frozen=True)
class _Score:
    """A number that every caption has: how it is labelled, scaled and written."""

    label: str
    log: bool
    how: str
    arrow: str
    side: str


_SCORES = {
    "latent_relative_error": _Score(
        "latent relative error (left is better)", True, "sig", "← {}", "left"
    ),
    "psnr": _Score("PSNR in dB (right is better)", False, "db", "{} →", "right"),
}


@styled()
def plot_scores(documents: Sequence[Document], key: str) -> Figure:
    """One score of every caption, one row a variant.

    Args:
        key: "latent_relative_error" or "psnr"; equal pictures have no finite PSNR and no dot.
    """
    shown, score = compared(documents), _SCORES[key]
    names = variants_of(shown)
    colors = variant_colors(names)
    chart, axes = figure(4.9, 0.9 + 0.42 * len(names))
    rows = {
        document["variant"]: np.array(
            [caption[key] for caption in document["captions"] if caption[key] is not None]
        )
        for document in shown
    }
    floor = _far_floor(rows, score.log)
    if floor is not None:
        rows[_FLOOR] = np.zeros(0)
        axes.text(
            0.01 if score.side == "left" else 0.99, names.index(_FLOOR),
            score.arrow.format(_range(floor, score.how)), transform=axes.get_yaxis_transform(),
            ha=score.side, va="center", color=colors[_FLOOR], fontsize=8.5,
        )  # fmt: skip
    _strip(axes, list(rows.values()), [colors[name] for name in names])
    if score.log:
        log_axis(axes, "x")
    axes.set_xlabel(score.label)
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return chart


# ------------------------------------------------------------------------- along the schedule


def draw_curves(
    axes: Axes,
    places: Sequence[float],
    curves: Mapping[str, np.ndarray],
    styles: Mapping[str, dict[str, Any]],
    log: bool = False,
    title: str = "",
) -> None:
    """One line a variant; a noise floor that is far from the others is stated in the title."""
    floor = _far_floor(curves, log)
    for name, values in curves.items():
        if name != _FLOOR or floor is None:
            axes.plot(places, values, ms=4.5, lw=1.3, label=name, **styles[name])
    if log:
        log_axis(axes, "y")
    if floor is not None:
        stated = f"noise floor: {_range(floor, 'sig' if log else 'db')}"
        title = f"{title} ({stated})" if title else stated
    axes.set_title(title, fontsize=9)
    axes.grid(axis="y")


def sigma_axis(axes: Axes) -> None:
    axes.set_xlim(1.03, -0.03)
    axes.set_xlabel(_SIGMA)


_CURVES = {
    "velocity_errors": "relative velocity error",
    "divergence": "relative distance of latents",
}


def _middle(document: Document, key: str) -> np.ndarray:
    """Medians over captions by measured step; nan where a logarithmic axis has no place."""
    curves = np.array([caption[key] for caption in document["captions"]], dtype=np.float64)
    middle = np.median(curves, axis=0)
    return np.where(middle > 0, middle, np.nan)


@styled()
def plot_sigma_curves(documents: Sequence[Document], key: str) -> Figure:
    """Medians over captions against sigma, from noise (left) to picture (right).

    Args:
        key: "velocity_errors" (one step's error, at the reference's latents) or "divergence" (of
            the free-running latents; the first step starts from the same noise).
    """
    shown = compared(documents)
    chart, axes = figure(4.7, 3.1 + legend_height(len(shown), 2))
    curves = {document["variant"]: _middle(document, key) for document in shown}
    sigmas = documents[0]["measured_sigmas"]
    draw_curves(axes, sigmas, curves, line_styles(variants_of(shown)), log=True)
    axes.set_ylabel(_CURVES[key])
    sigma_axis(axes)
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
    return [document for document in compared(documents) if document.get("block_sqnr")]


def _median(values: np.ndarray) -> float:
    """Over the steps at which something was lost; nan if there is none."""
    finite = _finite([values])
    return float(np.median(finite)) if finite.size else float("nan")


_STREAM_TITLES = {"img": "image stream", "txt": "text stream", "uni": "unified stream"}
_DECIBELS = "SQNR in dB (higher is better)"


@styled()
def plot_block_sqnr(documents: Sequence[Document]) -> Figure:
    """SQNR of every block's output, the median over the measured steps; one panel a stream."""
    shown = _measured(documents)
    styles = line_styles(variants_of(compared(documents)))
    streams = {document["variant"]: _streams(document) for document in shown}
    kinds = next(iter(streams.values()), {})
    chart, axes = panels(9.6, 3.1 + legend_height(len(shown), 4), max(1, len(kinds)))
    for panel, (kind, found) in zip(axes, kinds.items(), strict=False):
        blocks = list(found)
        curves = {
            name: np.array([_median(own[kind][block]) for block in blocks])
            for name, own in streams.items()
        }
        draw_curves(panel, range(len(blocks)), curves, styles, title=_STREAM_TITLES[kind])
        every = 1 if len(blocks) <= 12 else 2
        panel.set_xticks(range(0, len(blocks), every), blocks[::every])
        panel.tick_params(axis="x", rotation=90 if len(blocks) > 8 else 0)
    axes[0].set_ylabel(_DECIBELS)
    legend_below(chart, axes[0], 4)
    return chart


@styled()
def plot_sqnr_by_sigma(documents: Sequence[Document]) -> Figure:
    """SQNR of the image stream behind the last block, against sigma."""
    shown = _measured(documents)
    chart, axes = figure(4.7, 3.1 + legend_height(len(shown), 2))
    curves = {}
    for document in shown:
        streams = _streams(document)
        curves[document["variant"]] = list(streams.get("uni", streams["img"]).values())[-1]
    sigmas = documents[0]["measured_sigmas"]
    draw_curves(axes, sigmas, curves, line_styles(variants_of(compared(documents))))
    axes.set_ylabel(_DECIBELS)
    sigma_axis(axes)
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
    shown = [document for document in compared(documents) if document["variant"] != _FLOOR]
    styles = line_styles(variants_of(compared(documents)))
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
    if smallest == largest:
        axes.set_xticks([smallest], [f"{smallest:.1f}"])
    log_axis(axes, "y")
    axes.set_xlabel("size of the MM-DiT in MB (left is better)")
    axes.set_ylabel("median latent error")
    axes.grid(axis="both")
    legend_below(chart, axes, 2)
    return chart
