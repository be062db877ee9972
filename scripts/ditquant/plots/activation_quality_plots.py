"""Charts of what activation quantization does: quality against bits, and inputs by sigma.

They show the variants of an evaluation whose activations are quantized; see `evaluation_plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics import bootstrap_interval
from ..planning.variants import WEIGHTS, Variant
from .charts import figure, legend_below, legend_height, line_styles, log_axis, panels, styled
from .evaluation_plots import compared, draw_curves, sigma_axis, variants_of

Document = Mapping[str, Any]

# What the inputs of linears are, in order of computation; k and v read the input of q.
_KINDS = {"attn.q_proj": "attention", "attn.o_proj": "output of attention", "mlp.fc1": "MLP",
          "mlp.fc2": "behind GELU"}  # fmt: skip
_STREAMS = {"img": "image", "txt": "text", "uni": "unified"}


def _quantized(documents: Sequence[Document]) -> list[Document]:
    return [document for document in documents if document.get("activations")]


def _say(axes: Axes, text: str) -> None:
    """In the middle of a chart that has nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _median_and_interval(document: Document) -> tuple[float, float, float]:
    errors = np.array([caption["latent_relative_error"] for caption in document["captions"]])
    return float(np.median(errors)), *bootstrap_interval(errors, np.median)


@styled()
def plot_bits(documents: Sequence[Document]) -> Figure:
    """Median latent error with its interval against the average bits of the activations.

    A line across shows each recipe's weights with full-precision activations, where evaluated.
    """
    shown = _quantized(documents)
    styles = line_styles(variants_of(compared(documents)))
    chart, axes = figure(4.7, 3.3 + legend_height(len(shown), 2))
    if not shown:
        _say(axes, "no evaluated variant quantizes activations")
        return chart
    bits = [document["activations"]["average_bits"] for document in shown]
    span = max(max(bits) - min(bits), 1.0)
    for index, document in enumerate(shown):
        name = document["variant"]
        same = [other for other, value in enumerate(bits) if abs(value - bits[index]) < 0.05 * span]
        # Variants of as many bits stand beside each other.
        step = min(0.03, 0.3 / len(same)) * span
        place = bits[index] + step * (same.index(index) - (len(same) - 1) / 2)
        median, low, high = _median_and_interval(document)
        color, marker = styles[name]["color"], styles[name]["marker"]
        axes.plot([place, place], [low, high], color=color, lw=1.1, alpha=0.7)
        axes.plot(place, median, marker, color=color, ms=6, label=name)
    recipes = {Variant.parse(document["variant"]).recipe for document in shown} - {None}
    for document in documents:
        variant = Variant.parse(document["variant"])
        if variant.kind == WEIGHTS and variant.recipe in recipes:
            median, _, _ = _median_and_interval(document)
            axes.axhline(median, color="0.45", lw=0.9, ls=(0, (4, 3)), zorder=0)
            place = axes.get_yaxis_transform()
            axes.text(0.01, median, document["variant"], fontsize=7, va="bottom", transform=place)
    log_axis(axes, "y")
    axes.set_xlim(min(bits) - 0.25 * span, max(bits) + 0.25 * span)
    axes.set_xlabel("average bits of the activations (left is smaller)")
    axes.set_ylabel("median latent error")
    axes.grid(axis="both")
    legend_below(chart, axes, 2)
    return chart


def _by_kind(document: Document) -> dict[tuple[str, str], np.ndarray]:
    """(stream, kind) -> (sigmas,) medians over blocks of the inputs' SQNR in dB."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for name, decibels in document["input_sqnr"].items():
        parts = name.split(".")
        stream = parts[1] if parts[1] in _STREAMS else "uni"
        values = [np.nan if value is None else value for value in decibels]
        found.setdefault((stream, ".".join(parts[-2:])), []).append(values)
    return {key: np.nanmedian(np.array(rows), axis=0) for key, rows in found.items()}


@styled()
def plot_input_sqnr(documents: Sequence[Document]) -> Figure:
    """SQNR of the linears' inputs against sigma, one panel for each kind of the first stream."""
    shown = [document for document in _quantized(documents) if document.get("input_sqnr")]
    styles = line_styles(variants_of(compared(documents)))
    if not shown:
        chart, axes = figure(9.6, 1.6)
        _say(axes, "no evaluated variant quantizes activations")
        return chart
    curves = {document["variant"]: _by_kind(document) for document in shown}
    stream = "img" if any(key[0] == "img" for key in next(iter(curves.values()))) else "uni"
    kinds = [kind for kind in _KINDS if (stream, kind) in next(iter(curves.values()))]
    chart, axes = panels(9.6, 3.0 + legend_height(len(shown), 4), len(kinds))
    sigmas = documents[0]["measured_sigmas"]
    for panel, kind in zip(axes, kinds, strict=True):
        lines = {name: own[stream, kind] for name, own in curves.items()}
        draw_curves(panel, sigmas, lines, styles, title=f"{_STREAMS[stream]}: {_KINDS[kind]}")
        sigma_axis(panel)
        # Panels stand close: labels at both ends of an axis would meet the next one's.
        panel.set_xticks([1.0, 0.5, 0.0], ["1", "0.5", "0"])
        panel.set_xlabel("sigma")
    axes[0].set_ylabel("SQNR in dB (higher is better)")
    legend_below(chart, axes[0], 4)
    return chart
