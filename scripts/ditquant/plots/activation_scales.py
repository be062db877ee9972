"""Plots of a configuration: scales against sigma, beside what was measured, and tiers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..activations.histogram import quantile
from ..activations.input_statistics import InputStatistics
from ..activations.quant_config import QuantConfig
from ..activations.quant_params import largest_code
from ..activations.scheme import TIER_BITS
from ..activations.sigma_lookup import params_along
from . import layout
from .activation_distributions import codes_of
from .charts import log_axis
from .layout import COLUMNS, SHORT_SIGMA, SIGMA, VERMILION, Shown

_TIER_COLOURS = ("#56B4E9", "#E69F00", "#0B3C5D")
_POINTS = 240
_STEP = 1e-6
_COLUMNS = 3


def _boundaries(config: QuantConfig) -> list[float]:
    """The sigmas where one row of the configuration ends and the next begins."""
    around = pairwise(zip(config.row_of, config.sigmas, strict=True))
    return [(high + low) / 2 for (row, high), (after, low) in around if row != after]


def _draw_boundaries(axes: Axes, config: QuantConfig) -> None:
    """A line between groups of sigmas."""
    if config.granularity.is_grouped:
        for boundary in _boundaries(config):
            axes.axvline(boundary, color="#777777", linewidth=0.6, linestyle=(0, (3, 2)))


def _sigmas_between(config: QuantConfig) -> np.ndarray:
    """Sigmas of the whole schedule, descending, that show what inference looks up.

    Scales are looked up by sigma, whatever the steps are: polynomials are drawn smooth, and of rows
    both sides of every boundary.
    """
    sigmas = np.array(config.sigmas)
    if config.granularity.is_continuous:
        even = np.linspace(sigmas[0], sigmas[-1], _POINTS)
        return np.unique(np.concatenate([even, sigmas]))[::-1]
    boundaries = np.array(_boundaries(config))
    around = [boundaries + _STEP, boundaries - _STEP]
    return np.unique(np.concatenate([sigmas[[0, -1]], *around]))[::-1]


def scales_at(config: QuantConfig, name: str, sigmas: np.ndarray) -> np.ndarray:
    """(2, sigmas) scales of the narrowest and the widest group of channels; equal without groups.

    Not for dynamic ranges, which have none.
    """
    params = params_along(config, config.layers[name], sigmas.tolist())
    ends = [[np.min(one.scale), np.max(one.scale)] for one in params if one.scale is not None]
    return np.array(ends, dtype=np.float64).T


def _run_time_scales(config: QuantConfig, name: str, measured: InputStatistics) -> np.ndarray:
    """(3, S) scales that the calibration's inputs get at run time: low, usual and high.

    Of each tensor one; of tokens those that a twentieth, half and all but a twentieth fall below.
    """
    reach = config.granularity.reach(measured)
    numbers = params_along(config, config.layers[name], config.sigmas)
    codes = [codes_of(one, measured, step) for step, one in enumerate(numbers)]
    shifts = np.array([code.shift for code in codes])
    return (reach - shifts) / np.array([code.high for code in codes])


def _draw_band(
    axes: Axes, sigmas: np.ndarray, band: np.ndarray, colour: Any, alpha: float, width: float
) -> None:
    """A line, and what lies around it.

    Args:
        band: (3, sigmas) low, usual and high.
    """
    low, usual, high = band
    axes.plot(sigmas, usual, color=colour, linewidth=width)
    if np.any(low < high):
        axes.fill_between(sigmas, low, high, color=colour, alpha=alpha, linewidth=0)


def draw_scales(shown: Shown) -> Figure:
    """One line a block: the scale that is looked up at a sigma."""
    statistics, config = shown.statistics, shown.config
    dynamic = config.granularity.is_dynamic
    sigmas = np.array(config.sigmas) if dynamic else _sigmas_between(config)
    title = f"Scales of every layer's input ({shown.made_by})"
    figure, made = layout.curve_panels(statistics, title, sharex=True)
    for panel, names in made:
        for name, shade in zip(names, layout.shades(len(names)), strict=True):
            if dynamic:
                band = _run_time_scales(config, name, statistics.inputs[name])
            else:
                band = scales_at(config, name, sigmas)[[0, 1, 1]]
            _draw_band(panel, sigmas, band, shade, 0.12, 1.1)
        log_axis(panel, "y")
        layout.sigma_axis(panel, statistics.sigmas)
        _draw_boundaries(panel, config)
    layout.bottom_labels(figure, SHORT_SIGMA)
    figure.supylabel("scale: input units a code (logarithmic)", fontsize=9)
    handles = layout.block_handles(statistics)
    label = config.granularity.spread_label[bool(config.channel_group)]
    if label:
        handles.append(Patch(color="#777777", alpha=0.3, label=label))
    layout.legend(figure, handles)
    return figure


def _reach(config: QuantConfig, name: str, sigmas: np.ndarray) -> np.ndarray:
    """(3, sigmas) what codes reach, of the channel that reaches least and (twice) furthest."""
    channels = config.layers[name].channels
    ends = []
    for one in params_along(config, config.layers[name], sigmas.tolist()):
        scale = np.asarray(one.scale)
        scale = np.repeat(scale, channels // scale.size) if scale.size > 1 else scale
        reach = scale * largest_code(one.bits) + one.shift
        ends.append([reach.min(), reach.max(), reach.max()])
    return np.array(ends).T


def _draw_coverage(axes: Axes, config: QuantConfig, name: str, measured: InputStatistics) -> None:
    """What was measured of one input and what codes reach."""
    sigmas = np.array(config.sigmas)
    bulk = quantile(measured.histogram, 0.999)
    axes.plot(sigmas, measured.absmax, "o", color="black", markersize=3)
    axes.plot(sigmas, bulk, color="#555555", linewidth=1.0, linestyle=(0, (1, 1.2)))
    lowest, highest = bulk.min(), measured.absmax.max()
    if config.granularity.is_dynamic:
        band = np.array(config.granularity.reach(measured))
        lowest = min(lowest, band[0].min()) if np.any(band[0] < band[2]) else lowest
    else:
        sigmas = _sigmas_between(config)
        band = _reach(config, name, sigmas)
        highest = max(highest, band.max())
    _draw_band(axes, sigmas, band, VERMILION, 0.15, 1.4)
    _draw_boundaries(axes, config)
    layout.range_axis(axes, float(lowest), float(highest))


def draw_coverage(shown: Shown) -> Figure:
    """Of the most variable inputs: what was measured against sigma, and what codes reach."""
    statistics, config = shown.statistics, shown.config
    chosen = layout.most_variable(statistics, shown.options.layers)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    title = "What was measured of the most variable inputs, and what codes reach"
    figure = layout.new_figure(1.1 + 2.5 * rows, f"{title} ({shown.made_by})")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, name in zip(grid, chosen, strict=False):
        _draw_coverage(axes, config, name, statistics.inputs[name])
        layout.sigma_axis(axes, statistics.sigmas)
        layout.head(axes, shown.label(name))
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    layout.bottom_labels(figure, SIGMA if columns == 1 else SHORT_SIGMA)
    figure.supylabel("|x|", fontsize=9)
    reach = config.granularity.reach_label[bool(config.channel_group)]
    handles = [
        Line2D([], [], color=VERMILION, linewidth=1.4, label=reach),
        Line2D([], [], color="black", marker="o", markersize=3, linestyle="", label="max |x|"),
        Line2D([], [], color="#555555", linestyle=(0, (1, 1.2)), label="99.9 % of |x| lie below"),
    ]
    layout.legend(figure, handles)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else f"{100 * share:.1g} %"


def draw_tiers(shown: Shown) -> Figure:
    """The share of each tier at every sigma, and below it every input's tier."""
    statistics = shown.statistics
    summary = shown.document["summary"]
    linears = len(shown.document["layers"])
    title = (
        f"Tiers over the schedule: {summary['average_bits']:.2f} bits on average; of {linears} "
        f"linears {len(summary['switching_layers'])} switch tier, "
        f"{len(summary['always_a8_layers'])} have A8 throughout"
    )
    height = layout.matrix_panels_height(statistics)
    figure = layout.new_figure(1.9 + height, title)
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
    layout.columns_axis(share, statistics.sigmas, 13)
    share.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    config = shown.config
    tiers = {
        name: np.array(
            [one.bits for one in params_along(config, config.layers[name], config.sigmas)]
        )
        for name in statistics.inputs
    }
    # One colour an entry of TIER_BITS: each bin starts at a tier's bits.
    layout.matrix_panels(
        below,
        statistics,
        tiers,
        cmap=ListedColormap(_TIER_COLOURS),
        norm=BoundaryNorm([*TIER_BITS, TIER_BITS[-1] + 1], len(TIER_BITS)),
    )
    below.supxlabel(COLUMNS, fontsize=9)
    return figure
