"""Heat maps over (layer, sigma): the range, how it varies, and the tier it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure

from ..activations.input_statistics import Statistics
from ..activations.quant_config import parse_quant_config
from ..activations.sigma_lookup import numbers_along
from ..activations.tiers import TIER_BITS
from .activation_panels import (
    PAGE_WIDTH,
    SIGMA,
    PlotOptions,
    columns_axis,
    matrix_panels,
    matrix_panels_height,
    new_figure,
)
from .activation_ranking import variation

_TIER_COLOURS = ("#56B4E9", "#E69F00", "#0B3C5D")
_MOST_OCTAVES = 2.0
_MOST_ABOVE = 4.0
_COLUMNS = f"{SIGMA}; a column is a measured step"


def _power_label(value: float) -> str:
    """4, 1/2."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def draw_heatmap(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """The largest |x| of every input at every measured step, on one logarithmic scale."""
    figure = new_figure(
        PAGE_WIDTH, matrix_panels_height(statistics), "Range of every layer's input"
    )
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    everything = np.array(list(absmax.values()))
    floor = max(float(everything.max()) * 1e-4, 1e-12)
    low = max(float(everything.min()), floor)
    # A few layers may be far above the others, which are to keep most of the colours.
    usual = _MOST_ABOVE * float(np.quantile(everything, 0.97))
    high = max(min(float(everything.max()), usual), 1.5 * low)
    clip = "max" if everything.max() > high else "neither"
    image, made = matrix_panels(
        figure,
        statistics,
        {name: np.maximum(row, floor) for name, row in absmax.items()},
        cmap="cividis",
        norm=LogNorm(vmin=low, vmax=high),
    )
    bar = figure.colorbar(image, ax=[panel for panel, _ in made], pad=0.01, aspect=40, extend=clip)
    bar.set_label("max |x| (logarithmic)")
    powers = [power for power in 2.0 ** np.arange(-12, 18) if low <= power <= high]
    bar.set_ticks(powers, labels=[_power_label(power) for power in powers])
    bar.ax.minorticks_off()
    figure.supxlabel(_COLUMNS, fontsize=9)
    return figure


def draw_variability(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """Every range over its own mean; beside each row the coefficient of variation."""
    figure = new_figure(
        PAGE_WIDTH,
        matrix_panels_height(statistics),
        "Variability: every layer's range as a multiple of its own mean over the schedule",
    )
    octaves = {}
    for name, measured in statistics.inputs.items():
        absmax = np.maximum(measured.absmax.astype(np.float64), 1e-12)
        octaves[name] = np.log2(absmax / absmax.mean())
    end = max(0.25, max(float(np.abs(values).max()) for values in octaves.values()))
    # Few cells go far; without this clip the many that move by a half would all look alike.
    clip = "both" if end > _MOST_OCTAVES else "neither"
    end = min(end, _MOST_OCTAVES)
    image, made = matrix_panels(
        figure,
        statistics,
        octaves,
        cmap="PuOr_r",
        norm=TwoSlopeNorm(0.0, -end, end),
    )
    for panel, rows in made:
        for name, row in rows.items():
            percent = 100 * variation(statistics.inputs[name])
            panel.text(
                1.015, row, f"{percent:.0f} %", transform=panel.get_yaxis_transform(),
                fontsize=6, va="center", clip_on=False,
            )  # fmt: skip
    bar = figure.colorbar(image, ax=[panel for panel, _ in made], pad=0.01, aspect=40, extend=clip)
    bar.set_label("max |x| / its mean over σ")
    octave = 0.5 if end < 1.5 else 1.0
    ticks = np.arange(-np.floor(end / octave), np.floor(end / octave) + 1) * octave
    bar.set_ticks(ticks, labels=[f"{2.0**tick:.2g}×" for tick in ticks])
    figure.supxlabel(
        f"{_COLUMNS}; right of a row: standard deviation over mean of its range", fontsize=9
    )
    return figure


def bits_of(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Input name -> (S,) bits of a configuration at its measured sigmas."""
    config = parse_quant_config(document, "quant_config")
    return {
        name: np.array(
            [one.bits for one in numbers_along(config, config.layers[name], config.sigmas)]
        )
        for name in names
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else f"{100 * share:.1g} %"


def draw_tiers(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """The share of each tier at every sigma, and below it every input's tier."""
    (document,) = documents
    summary = document["summary"]
    linears = len(document["layers"])
    title = (
        f"Tiers over the schedule: {summary['average_bits']:.2f} bits on average; of {linears} "
        f"linears {len(summary['switching_layers'])} switch tier, "
        f"{len(summary['always_a8_layers'])} have A8 throughout"
    )
    height = matrix_panels_height(statistics)
    figure = new_figure(PAGE_WIDTH, 1.9 + height, title)
    above, below = figure.subfigures(2, 1, height_ratios=[1.9, height])
    share = above.subplots()
    bottom = np.zeros(len(statistics.sigmas))
    edges = np.arange(len(bottom) + 1) - 0.5
    for bits, colour in zip(TIER_BITS, _TIER_COLOURS, strict=True):
        percent = 100 * np.array(summary["layers_per_sigma"][f"A{bits}"]) / linears
        label = f"A{bits}: {_percent(summary['shares'][f'A{bits}'])}"
        # One area a tier: between bars a reader of SVG files would see gaps.
        share.stairs(bottom + percent, edges, baseline=bottom, fill=True, color=colour, label=label)
        bottom = bottom + percent
    share.set_ylim(0, 100)
    share.set_ylabel("share of linears, %")
    share.set_xlim(-0.5, len(statistics.sigmas) - 0.5)
    share.tick_params(labelsize=8)
    columns_axis(share, statistics.sigmas, 13)
    share.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    # One colour an entry of TIER_BITS: each bin starts at a tier's bits.
    matrix_panels(
        below,
        statistics,
        bits_of(document, list(statistics.inputs)),
        cmap=ListedColormap(_TIER_COLOURS),
        norm=BoundaryNorm([*TIER_BITS, TIER_BITS[-1] + 1], len(TIER_BITS)),
    )
    below.supxlabel(_COLUMNS, fontsize=9)
    return figure
