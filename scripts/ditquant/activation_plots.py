"""Plots of activation statistics and of the configurations made from them.

Every plot shows inputs rather than linears (q, k and v read one). Panels are laid out by stream and
kind of layer with the blocks along the axis, so that 24 or 57 blocks read as well as 6. Colours are
those of cividis and of Okabe and Ito, which survive colour blindness and grey printing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure

from .activation_panels import (
    COLOURS,
    SIGMA_LABEL,
    block_axis,
    input_label,
    layer_axis,
    matrix_height,
    new_figure,
    panels,
    rows_of_panels,
    sigma_axis,
)
from .activation_statistics import Statistics
from .histogram import NUM_BINS, bin_edges
from .intervals import largest_code
from .quant_config import QuantConfig, parse_quant_config
from .ranges import DYNAMIC
from .tiers import TIER_BITS

_TIER_COLOURS = {4: "#56B4E9", 6: "#E69F00", 8: "#0B3C5D"}
_MOST_VARIABLE = 6


def nearest_steps(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Positions in `steps` of the measured steps nearest to the wanted ones, each once."""
    measured = np.asarray(steps)
    return sorted({int(np.abs(measured - step).argmin()) for step in wanted})


def _plot_absmax(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    figure = new_figure(
        13, 0.8 + 2.7 * rows_of_panels(statistics), "Largest |input| of every layer"
    )
    positions = nearest_steps(statistics.steps, snapshot_steps)
    shades = mpl.colormaps["cividis"](np.linspace(0.05, 0.92, len(positions)))
    handles: list[Any] = []
    for panel, names in panels(figure, statistics):
        absmax = np.array([statistics.inputs[name].absmax for name in names])
        handles = [
            panel.plot(
                range(len(names)), absmax[:, position], "o-", color=shade, markersize=3.5,
                linewidth=1.1, label=f"σ = {statistics.sigmas[position]:.3g}",
            )[0]
            for position, shade in zip(positions, shades, strict=True)
        ]  # fmt: skip
        panel.set_ylim(0, 1.08 * absmax.max())
        block_axis(panel, names)
    figure.supylabel("max |x| over images, tokens and channels", fontsize=9)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def _plot_drift(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    figure = new_figure(9, 5.2, "Inputs whose range moves most over the schedule")
    axes = figure.subplots()
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    drift = {name: row.max() / max(row.min(), 1e-12) for name, row in absmax.items()}
    chosen = sorted(drift, key=lambda name: (-drift[name], name))[:_MOST_VARIABLE]
    for name, colour, marker in zip(chosen, COLOURS, "os^Dv<", strict=False):
        gelu = ", after GELU" if name in statistics.post_gelu else ""
        axes.plot(
            statistics.sigmas, absmax[name], marker=marker, color=colour, markersize=4,
            linewidth=1.4, label=f"{input_label(name)} ({drift[name]:.1f}-fold{gelu})",
        )  # fmt: skip
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(SIGMA_LABEL)
    axes.set_ylabel("max |x|")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _plot_heatmap(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    names = list(statistics.inputs)
    figure = new_figure(8, matrix_height(len(names)), "Range of every input over the schedule")
    axes = figure.subplots()
    absmax = np.array([statistics.inputs[name].absmax for name in names])
    floor = max(absmax.max() * 1e-4, 1e-12)
    image = axes.imshow(
        np.maximum(absmax, floor), aspect="auto", cmap="cividis", interpolation="nearest",
        norm=LogNorm(vmin=max(absmax.min(), floor), vmax=max(absmax.max(), 2 * floor)),
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, label="max |x| (log scale)", shrink=0.7)
    low, high = absmax.min(), absmax.max()
    ticks = [tick for tick in (2.0 ** np.arange(-12, 18)) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    layer_axis(axes, statistics)
    sigma_axis(axes, statistics.sigmas)
    return figure


def _bits(document: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """(inputs, sigmas) bits of a configuration."""
    config = parse_quant_config(document, "quant_config")
    return np.array(
        [
            [config.numbers(config.layers[name], sigma).bits for sigma in config.sigmas]
            for name in names
        ]
    )


def _plot_tiers(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    (document,) = documents
    names = list(statistics.inputs)
    summary = document["summary"]
    title = f"Tiers over the schedule: {summary['average_bits']:.2f} bits on average"
    figure = new_figure(8, 1.6 + matrix_height(len(names)), title)
    share, matrix = figure.subplots(
        2, 1, sharex=True, height_ratios=[1.5, matrix_height(len(names)) - 1]
    )
    colours = [_TIER_COLOURS[bits] for bits in TIER_BITS]
    layers = [np.array(summary["layers_per_sigma"][f"A{bits}"]) for bits in TIER_BITS]
    total = sum(layers)
    percent = [100 * count / total for count in layers]
    bottom = np.zeros(len(statistics.sigmas))
    for bits, part, colour in zip(TIER_BITS, percent, colours, strict=True):
        label = f"A{bits}: {100 * summary['shares'][f'A{bits}']:.0f} %"
        share.bar(range(len(part)), part, 1.0, bottom=bottom, color=colour, label=label)
        bottom += part
    share.set_ylim(0, 100)
    share.set_ylabel("share of\nlinears, %", fontsize=9)
    share.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    # One colour an entry of TIER_BITS: each bin starts at a tier's bits.
    tiers = BoundaryNorm([*TIER_BITS, TIER_BITS[-1] + 1], len(TIER_BITS))
    matrix.imshow(
        _bits(document, names), aspect="auto", interpolation="nearest", norm=tiers,
        cmap=ListedColormap(colours),
    )  # fmt: skip
    layer_axis(matrix, statistics)
    sigma_axis(matrix, statistics.sigmas)
    return figure


def _upper_limits(config: QuantConfig, name: str, statistics: Statistics) -> np.ndarray:
    """(sigmas,) the largest |x| that codes stand for; with dynamic ranges what was measured."""
    if config.granularity in DYNAMIC:
        return np.asarray(statistics.inputs[name].absmax)
    numbers = [config.numbers(config.layers[name], sigma) for sigma in config.sigmas]
    return np.array([(one.scale or 0.0) * largest_code(one.bits) + one.shift for one in numbers])


def _plot_distributions(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], snapshot_steps: Sequence[int]
) -> Figure:
    (document,) = documents
    rule = document["configuration"]["range"]
    config = parse_quant_config(document, "quant_config")
    figure = new_figure(
        13, 0.8 + 2.7 * rows_of_panels(statistics),
        f"Distribution of |input| by kind of layer, and the configured range ({rule})",
    )  # fmt: skip
    edges = bin_edges()
    # Two bins together are smooth enough to read; bin 0, exact zeros, has no place on a log axis.
    pairs = np.arange(1, NUM_BINS - 1, 2)
    centers = np.sqrt(np.maximum(edges[pairs], edges[2]) * edges[pairs + 2])
    octaves = np.log2(edges[pairs + 2] / np.maximum(edges[pairs], edges[2] * 2 ** (-1 / 16)))
    for panel, names in panels(figure, statistics):
        shades = mpl.colormaps["cividis"](np.linspace(0.05, 0.92, len(names)))
        for name, shade in zip(names, shades, strict=True):
            counts = statistics.inputs[name].histogram.sum(axis=0)
            density = (counts[pairs] + counts[pairs + 1]) / counts.sum() / octaves
            panel.plot(centers, np.where(density > 0, density, np.nan), color=shade, linewidth=1)
        limits = np.concatenate([_upper_limits(config, name, statistics) for name in names])
        panel.axvspan(limits.min(), limits.max(), color=COLOURS[3], alpha=0.25, linewidth=0)
        panel.axvline(float(np.median(limits)), color=COLOURS[3], linewidth=1.2, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        # Plain labels: those of a log axis are set as mathematics, which takes seconds here.
        panel.set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.0001 %", "0.01 %", "1 %", "100 %"])
        panel.minorticks_off()
        panel.set_xlim(2.0**-9, 2.0 ** np.ceil(np.log2(limits.max() * 1.2)))
        panel.set_ylim(1e-7, 2)
        panel.xaxis.set_major_formatter(
            lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
        )
    figure.supxlabel(
        "|x| (dark: first block, light: last block; orange: from the smallest to the largest range "
        "over blocks and σ, dashed: median)",
        fontsize=9,
    )
    figure.supylabel("share of values per octave", fontsize=9)
    return figure


_Draw = Callable[[Statistics, Sequence[Mapping[str, Any]], Sequence[int]], Figure]
PLOTS: dict[str, _Draw] = {
    "absmax": _plot_absmax,
    "drift": _plot_drift,
    "heatmap": _plot_heatmap,
    "tiers": _plot_tiers,
    "distributions": _plot_distributions,
}


def draw(
    plot: str,
    statistics: Statistics,
    documents: Sequence[Mapping[str, Any]],
    snapshot_steps: Sequence[int],
) -> Figure:
    """The figure named `plot`.

    Args:
        plot: absmax, drift, heatmap, tiers (needs the multi-tier configuration) or distributions
            (needs the single-tier one).
        documents: the configurations that the plot needs.
        snapshot_steps: steps that `absmax` shows; the nearest measured ones are taken.
    """
    return PLOTS[plot](statistics, documents, snapshot_steps)
