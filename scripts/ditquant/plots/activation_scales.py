"""Plots of a configuration's scales against sigma: of all layers, and beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..activations.histogram import quantile
from ..activations.input_statistics import InputStatistics, Statistics
from ..activations.intervals import largest_code
from ..activations.quant_config import QuantConfig, parse_quant_config
from ..activations.sigma_lookup import Numbers, numbers_along
from ..activations.single_tier import DYNAMIC
from .activation_density import codes_of, made_by
from .activation_panels import (
    PAGE_WIDTH,
    SHORT_SIGMA,
    SIGMA,
    VERMILION,
    PlotOptions,
    block_handles,
    bottom_labels,
    input_label,
    new_figure,
    panels,
    panels_height,
    range_axis,
    shades,
    sigma_axis,
)
from .activation_ranking import most_variable
from .charts import log_axis

_POINTS = 240
_STEP = 1e-6
_TOKEN_SHARES = (0.05, 0.5, 0.95)
_COLUMNS = 3


def _boundaries(config: QuantConfig) -> list[float]:
    """The sigmas where one row of the configuration ends and the next begins."""
    around = pairwise(zip(config.row_of, config.sigmas, strict=True))
    return [(high + low) / 2 for (row, high), (after, low) in around if row != after]


def _sigmas_between(config: QuantConfig) -> np.ndarray:
    """Sigmas of the whole schedule, descending, that show what inference looks up.

    Scales are looked up by sigma, whatever the steps are: polynomials are drawn smooth, and of rows
    both sides of every boundary.
    """
    sigmas = np.array(config.sigmas)
    if config.granularity == "polynomial":
        even = np.linspace(sigmas[0], sigmas[-1], _POINTS)
        return np.unique(np.concatenate([even, sigmas]))[::-1]
    boundaries = np.array(_boundaries(config))
    around = [boundaries + _STEP, boundaries - _STEP]
    return np.unique(np.concatenate([sigmas[[0, -1]], *around]))[::-1]


def _scale(numbers: Numbers) -> np.ndarray:
    """The scales of groups of channels, or the one of all."""
    return np.asarray(np.nan if numbers.scale is None else numbers.scale)


def _scale_of_channels(numbers: Numbers, channels: int) -> np.ndarray:
    scale = _scale(numbers)
    return np.repeat(scale, channels // scale.size) if scale.size > 1 else scale


def scales_at(config: QuantConfig, name: str, sigmas: np.ndarray) -> np.ndarray:
    """(2, sigmas) scales of the narrowest and the widest group of channels; equal without groups.

    Not for dynamic ranges, which have none.
    """
    scales = [_scale(one) for one in numbers_along(config, config.layers[name], sigmas.tolist())]
    return np.array([[scale.min(), scale.max()] for scale in scales], dtype=np.float64).T


def _run_time_scales(config: QuantConfig, name: str, measured: InputStatistics) -> np.ndarray:
    """(3, S) scales that the calibration's inputs get at run time: low, usual and high.

    Of each tensor one; of tokens those that a twentieth, half and all but a twentieth fall below.
    """
    if config.granularity == "dynamic-tensor":
        reach = np.tile(measured.absmax.astype(np.float64), (3, 1))
    else:
        reach = np.array([quantile(measured.token_histogram, share) for share in _TOKEN_SHARES])
    numbers = numbers_along(config, config.layers[name], config.sigmas)
    codes = [codes_of(one, measured, step) for step, one in enumerate(numbers)]
    shifts = np.array([code.shift for code in codes])
    return (reach - shifts) / np.array([code.high for code in codes])


def draw_scales(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """One line a block: the scale that is looked up at a sigma."""
    (document,) = documents
    config = parse_quant_config(document, "quant_config")
    dynamic = config.granularity in DYNAMIC
    sigmas = np.array(config.sigmas) if dynamic else _sigmas_between(config)
    title = f"Scales of every layer's input ({made_by(document)})"
    figure = new_figure(PAGE_WIDTH, panels_height(statistics), title)
    made = panels(figure, statistics, sharex=True)
    for panel, names in made:
        for name, shade in zip(names, shades(len(names)), strict=True):
            if dynamic:
                low, usual, high = _run_time_scales(config, name, statistics.inputs[name])
            else:
                low, high = scales_at(config, name, sigmas)
                usual = high
            panel.plot(sigmas, usual, color=shade, linewidth=1.1)
            if np.any(low < high):
                panel.fill_between(sigmas, low, high, color=shade, alpha=0.12, linewidth=0)
        log_axis(panel, "y")
        sigma_axis(panel, statistics.sigmas)
        if config.granularity == "group":
            for boundary in _boundaries(config):
                panel.axvline(boundary, color="#777777", linewidth=0.6, linestyle=(0, (3, 2)))
    bottom_labels(figure, SHORT_SIGMA)
    figure.supylabel("scale: input units a code (logarithmic)", fontsize=9)
    handles: list[Any] = [*block_handles(statistics)]
    if config.granularity == "dynamic-token":
        label = "nine in ten tokens (line: median)"
        if config.channel_group:
            label = "the widest group of nine in ten tokens (line: of the median token)"
        handles.append(Patch(color="#777777", alpha=0.3, label=label))
    elif config.channel_group and not dynamic:
        label = "smallest to largest group of channels (line: largest)"
        handles.append(Patch(color="#777777", alpha=0.3, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_coverage(
    axes: Axes, config: QuantConfig, name: str, measured: InputStatistics
) -> tuple[float, float]:
    """What was measured of one input and what codes reach; returns the smallest and the largest."""
    sigmas = np.array(config.sigmas)
    bulk = quantile(measured.histogram, 0.999)
    axes.plot(sigmas, measured.absmax, "o", color="black", markersize=3)
    axes.plot(sigmas, bulk, color="#555555", linewidth=1.0, linestyle=(0, (1, 1.2)))
    if config.granularity == "dynamic-token":
        low, usual, high = (quantile(measured.token_histogram, share) for share in _TOKEN_SHARES)
        axes.plot(sigmas, usual, color=VERMILION, linewidth=1.4)
        axes.fill_between(sigmas, low, high, color=VERMILION, alpha=0.15, linewidth=0)
        return float(min(bulk.min(), low.min())), float(measured.absmax.max())
    if config.granularity == "dynamic-tensor":
        axes.plot(sigmas, measured.absmax, color=VERMILION, linewidth=1.4)
        return float(bulk.min()), float(measured.absmax.max())
    fine = _sigmas_between(config)
    numbers = numbers_along(config, config.layers[name], fine.tolist())
    channels = config.layers[name].channels
    reach = [
        _scale_of_channels(one, channels) * largest_code(one.bits) + one.shift for one in numbers
    ]
    ends = np.array([[one.max() for one in reach], [one.min() for one in reach]])
    axes.plot(fine, ends[0], color=VERMILION, linewidth=1.4)
    if np.any(ends[1] < ends[0]):
        axes.fill_between(fine, *ends[::-1], color=VERMILION, alpha=0.15, linewidth=0)
    if config.granularity == "group":
        for boundary in _boundaries(config):
            axes.axvline(boundary, color="#777777", linewidth=0.6, linestyle=(0, (3, 2)))
    return float(bulk.min()), float(max(measured.absmax.max(), ends.max()))


def _reach_label(config: QuantConfig) -> str:
    if config.granularity == "dynamic-token":
        widest = ", its widest group" if config.channel_group else ""
        return f"range of the median token{widest} (band: nine in ten tokens)"
    if config.granularity == "dynamic-tensor":
        return "range of a tensor"
    of_groups = " (band: of all groups of channels)" if config.channel_group else ""
    return f"value of the largest code, by σ{of_groups}"


def draw_coverage(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """Of the most variable inputs: what was measured against sigma, and what codes reach."""
    (document,) = documents
    config = parse_quant_config(document, "quant_config")
    chosen = most_variable(statistics, options.layers)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(
        PAGE_WIDTH, 1.1 + 2.5 * rows,
        "What was measured of the most variable inputs, and what codes reach "
        f"({made_by(document)})",
    )  # fmt: skip
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, name in zip(grid, chosen, strict=False):
        low, high = _draw_coverage(axes, config, name, statistics.inputs[name])
        range_axis(axes, low, high)
        sigma_axis(axes, statistics.sigmas)
        gelu = ", after GELU" if name in statistics.post_gelu else ""
        axes.set_title(f"{input_label(name)}{gelu}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(True)
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    bottom_labels(figure, SIGMA if columns == 1 else SHORT_SIGMA)
    figure.supylabel("|x|", fontsize=9)
    handles = [
        Line2D([], [], color=VERMILION, linewidth=1.4, label=_reach_label(config)),
        Line2D([], [], color="black", marker="o", markersize=3, linestyle="", label="max |x|"),
        Line2D([], [], color="#555555", linestyle=(0, (1, 1.2)), label="99.9 % of |x| lie below"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
