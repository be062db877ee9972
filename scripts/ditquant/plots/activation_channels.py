"""Plots of single channels: how they are distributed in every layer, and the outliers among them.

A channel's range is its largest |x| over images and tokens. One scale for all channels is set by
the largest of them, so a few outliers cost all others their codes.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..activations.input_statistics import InputStatistics
from . import layout
from .charts import PALETTE
from .layout import BLUE, OUTLIER, VERMILION, Shown

_BAND = "#9DBBD6"
# Channels that a panel has columns for; more are drawn by the extremes of their neighbours.
_MOST_COLUMNS = 512
_NAMED_CHANNELS = 4
_DEEPEST = 8.0
_MARKERS = "os^D"


def draw_channels(shown: Shown) -> Figure:
    """The ranges of every layer's channels: median, quartiles, bulk, and outliers above it."""
    statistics = shown.statistics
    title = "Ranges of the channels of every layer's input"
    figure, made = layout.curve_panels(statistics, title)
    for panel, names in made:
        lowest, box, highest = np.inf, np.inf, 0.0
        for x, name in enumerate(names):
            ranges = layout.channel_absmax(statistics.inputs[name]).max(axis=0).astype(np.float64)
            ranges = np.maximum(ranges, 1e-12)
            low, first, median, third, high = np.quantile(ranges, [0.01, 0.25, 0.5, 0.75, 0.99])
            panel.vlines(x, low, high, color=_BAND, linewidth=2.2)
            panel.vlines(x, first, third, color=BLUE, linewidth=4)
            panel.plot(x, median, "_", color="white", markersize=5, markeredgewidth=1.3)
            if ranges.max() > OUTLIER * median:
                panel.vlines(x, OUTLIER * median, ranges.max(), color=VERMILION, linewidth=0.9)
                panel.plot(x, ranges.max(), "v", color=VERMILION, markersize=4)
            else:
                panel.plot(x, ranges.max(), "_", color=BLUE, markersize=6, markeredgewidth=1.2)
            lowest, box = min(lowest, low), min(box, first)
            highest = max(highest, float(ranges.max()))
        # Channels that are nearly always zero would press all others together.
        lowest = max(lowest, box / _DEEPEST)
        layout.log_range(panel, lowest / 1.2, highest * 1.3)
        layout.block_axis(panel, names)
    figure.supylabel("max |x| of a channel over images, tokens and σ (logarithmic)", fontsize=9)
    handles = [
        Line2D([], [], color=BLUE, linewidth=4, label="half of the channels (white: median)"),
        Line2D([], [], color=_BAND, linewidth=2.2, label="98 % of the channels"),
        Line2D([], [], color=BLUE, marker="_", linestyle="", label="largest channel"),
        Line2D([], [], color=VERMILION, marker="v", linewidth=0.9,
               label=f"largest channel, above {OUTLIER:g} × the median: an outlier"),
    ]  # fmt: skip
    layout.legend(figure, handles, 4)
    return figure


def _draw_profile(axes: Axes, measured: InputStatistics) -> None:
    """The interval of every channel over the whole schedule, in the order of the model."""
    low, high = measured.channel_min.min(axis=0), measured.channel_max.max(axis=0)
    ranges = np.maximum(np.abs(low), np.abs(high))
    limit = OUTLIER * float(np.median(ranges))
    # A column shows the extremes of its neighbours, so that no outlier gets lost.
    starts = np.arange(0, len(ranges), -(-len(ranges) // _MOST_COLUMNS))
    edges = np.append(starts, len(ranges))
    lowest, highest = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    outlying = np.maximum.reduceat(ranges, starts) > limit
    axes.stairs(highest, edges, baseline=lowest, fill=True, color=_BAND)
    # Where there is no outlier there is no number, so that nothing is drawn there.
    axes.stairs(
        np.where(outlying, highest, np.nan), edges, baseline=np.where(outlying, lowest, np.nan),
        fill=True, color=VERMILION,
    )  # fmt: skip
    for sign in (-1, 1) if low.min() < -limit / OUTLIER else (1,):
        axes.axhline(sign * limit, color=VERMILION, linewidth=0.8, linestyle=(0, (4, 2)))
    axes.set_xlim(0, len(ranges))
    margin = 0.08 * float(high.max() - low.min())
    axes.set_ylim(float(low.min()) - margin, float(high.max()) + margin)


def _draw_outliers(axes: Axes, measured: InputStatistics, sigmas: np.ndarray) -> None:
    """The largest channels against sigma, over the median channel."""
    by_step = layout.channel_absmax(measured)
    named = np.argsort(-by_step.max(axis=0), kind="stable")[:_NAMED_CHANNELS]
    median = np.median(by_step, axis=1)
    for channel, colour, marker in zip(named, PALETTE, _MARKERS, strict=False):
        axes.plot(
            sigmas, by_step[:, channel], color=colour, marker=marker, markersize=3, linewidth=1.1,
            label=str(channel),
        )  # fmt: skip
    axes.plot(sigmas, median, color="#555555", linestyle=(0, (1, 1.2)), label="median")
    layout.range_axis(axes, float(max(median.min(), 1e-12)), float(by_step.max()))
    layout.sigma_axis(axes, sigmas)
    axes.legend(
        title="channel", title_fontsize=8, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def draw_outliers(shown: Shown) -> Figure:
    """The inputs with the largest outliers, channel by channel, and those channels over sigma."""
    statistics = shown.statistics
    chosen = layout.most_outlying(statistics, shown.options.layers)
    figure = layout.new_figure(
        1.0 + 1.75 * len(chosen), "Channels of the inputs with the largest outliers"
    )
    rows = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=[2.2, 1])
    for (profile, over_sigma), name in zip(rows, chosen, strict=True):
        measured = statistics.inputs[name]
        ranges = layout.channel_absmax(measured).max(axis=0)
        count = int((ranges > OUTLIER * np.median(ranges)).sum())
        layout.head(
            profile,
            f"{shown.label(name)}: {count} of {len(ranges)} channels are outliers, the "
            f"largest {layout.outlier_ratio(measured):.1f} × the median",
        )
        layout.head(over_sigma, "its largest channels, max |x|")
        _draw_profile(profile, measured)
        _draw_outliers(over_sigma, measured, statistics.sigmas)
        profile.set_ylabel("x", fontsize=9)
    rows[-1][0].set_xlabel("channel", fontsize=9)
    rows[-1][1].set_xlabel("noise level σ (no unit; 1 = noise)", fontsize=9)
    handles = [
        Patch(color=_BAND, label="smallest to largest value of a channel over the schedule"),
        Patch(color=VERMILION, label="outlier channels"),
        Line2D([], [], color=VERMILION, linewidth=0.8, linestyle=(0, (4, 2)),
               label=f"{OUTLIER:g} × the median channel's range"),
    ]  # fmt: skip
    layout.legend(figure, handles)
    return figure
