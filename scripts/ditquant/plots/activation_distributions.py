"""Distributions of the linears' inputs, and the ranges of a configuration drawn over them.

A histogram of |x| has no signs. Where values of one sign reach further than the others, the sign is
certain; elsewhere half are taken to be positive, and behind GELU what `intervals` estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..activations.histogram import NUM_BINS, bin_edges
from ..activations.input_statistics import InputStatistics, Statistics
from ..activations.intervals import positive_share
from ..activations.quant_config import QuantConfig
from ..activations.quant_params import QuantParams, code_range
from ..activations.sigma_lookup import params_along
from . import layout
from .layout import BLUE, VERMILION, Shown

# Where a layer's range is smallest over the schedule, and where it is largest.
_ENDS = (BLUE, VERMILION)
_LOWEST_SHARE = 1e-6 / 10
_COLUMNS = 240


@dataclass(frozen=True)
class Distribution:
    """The shares of an input's values below any point, at one measured step.

    Attributes:
        points: (K,) ascending.
        below: (K,) share of values below each point, from 0 to 1; linear in between.
    """

    points: np.ndarray
    below: np.ndarray

    def between(self, edges: np.ndarray) -> np.ndarray:
        """(E - 1,) share of values between neighbours of `edges`, (E,) ascending."""
        return np.diff(np.interp(edges, self.points, self.below))


def distribution(measured: InputStatistics, step: int) -> Distribution:
    """The distribution at position `step`, evenly spread within a bin."""
    counts = measured.histogram[step].astype(np.float64)
    low, high = float(measured.minimum[step]), float(measured.maximum[step])
    share = positive_share(counts, low, high)
    positive = counts * np.where(bin_edges()[:-1] > max(high, 0.0), 0.0, share)
    positive[1] += positive[0]
    negative = counts - positive
    # Bin 0, exact zeros, joins the smallest values; no bin reaches beyond the extremes.
    negative[1] = counts[0] + counts[1] - positive[1]
    upper = np.minimum(bin_edges()[2:], max(high, 0.0))
    lower = np.maximum(-bin_edges()[2:], min(low, 0.0))
    shares = np.concatenate([negative[:0:-1], positive[1:]])
    points = np.concatenate([lower[::-1], [0.0], upper])
    below = np.concatenate([[0.0], np.cumsum(shares)]) / max(counts.sum(), 1.0)
    return Distribution(points, below)


@dataclass(frozen=True)
class Codes:
    """The codes of an input at one sigma.

    Attributes:
        low, high: the smallest and the largest code.
        scale, shift: code q stands for scale q + shift.
    """

    low: int
    high: int
    scale: float
    shift: float

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest value that a code stands for."""
        return self.scale * self.low + self.shift, self.scale * self.high + self.shift

    def levels(self) -> np.ndarray:
        """The value of every code."""
        return self.scale * np.arange(self.low, self.high + 1) + self.shift

    def shares(self, values: Distribution) -> np.ndarray:
        """The share of values that is rounded to each code; what is clipped is not among them."""
        edges = self.scale * (np.arange(self.low, self.high + 2) - 0.5) + self.shift
        return values.between(edges)


def codes_of(params: QuantParams, measured: InputStatistics, step: int) -> Codes:
    """The codes of a configuration; of dynamic ranges those that the measured extremes give.

    Where groups of channels have scales of their own these are the codes of the widest group, and
    where each channel has a shift of its own they are around zero.
    """
    low, high = code_range(params.bits, params.unsigned)
    shift = 0.0 if np.size(params.shift) > 1 else float(np.asarray(params.shift).item())
    if params.scale is None:
        away = np.array([measured.minimum[step], measured.maximum[step]]) - shift
        scale = float(np.abs(away).max()) / high
    else:
        scale = float(np.max(params.scale))
    return Codes(low, high, max(scale, 1e-12), shift)


def entropy(shares: np.ndarray) -> float:
    """Bits that the codes of these shares carry."""
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * np.log2(shares)).sum())


def _share_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic vertical axis in percent, with plain labels every second power of ten."""
    axes.set_yscale("log")
    axes.set_yticks([1e-6, 1e-4, 1e-2, 1.0], ["0.0001 %", "0.01 %", "1 %", "100 %"])
    axes.minorticks_off()
    axes.set_ylim(low, high)


def _largest_values(config: QuantConfig, name: str, statistics: Statistics) -> np.ndarray:
    """(S,) the largest |x| that a code stands for at each measured sigma."""
    measured = statistics.inputs[name]
    ends = [
        codes_of(numbers, measured, step).interval[1]
        for step, numbers in enumerate(params_along(config, config.layers[name], config.sigmas))
    ]
    return np.array(ends)


def draw_distributions(shown: Shown) -> Figure:
    """Histograms of |x| of all steps by stream and kind of layer, and the configured ranges."""
    statistics, config = shown.statistics, shown.config
    edges = bin_edges()
    # Two bins together are smooth enough to read; bin 0, exact zeros, has no place on a log axis.
    pairs = np.arange(1, NUM_BINS - 1, 2)
    centers = np.sqrt(np.maximum(edges[pairs], edges[2]) * edges[pairs + 2])
    octaves = np.log2(edges[pairs + 2] / np.maximum(edges[pairs], edges[2] * 2 ** (-1 / 16)))
    title = f"Distribution of |x| of every layer's input, and its ranges ({shown.made_by})"
    figure, made = layout.curve_panels(statistics, title, sharey=True)
    peak = 1.0
    for panel, names in made:
        for name, shade in zip(names, layout.shades(len(names)), strict=True):
            counts = statistics.inputs[name].histogram.sum(axis=0)
            density = (counts[pairs] + counts[pairs + 1]) / counts.sum() / octaves
            panel.plot(centers, np.where(density > 0, density, np.nan), color=shade, linewidth=1)
            peak = max(peak, float(density.max()))
        limits = np.concatenate([_largest_values(config, name, statistics) for name in names])
        panel.axvspan(limits.min(), limits.max(), color=VERMILION, alpha=0.22, linewidth=0)
        panel.axvline(float(np.median(limits)), color=VERMILION, linewidth=1.2, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_xlim(2.0**-9, 2.0 ** np.ceil(np.log2(limits.max() * 1.2)))
        panel.minorticks_off()
        panel.xaxis.set_major_formatter(lambda value, _: layout.power_label(value))
    for panel, _ in made:
        _share_axis(panel, 1e-7, 1.5 * peak)
    layout.bottom_labels(figure, "|x| of all images, tokens and steps")
    figure.supylabel("share of values per octave (doubling of |x|)", fontsize=9)
    dynamic = config.granularity.is_dynamic
    ranges = "the widest ranges of the calibration" if dynamic else "ranges"
    handles = [
        *layout.block_handles(statistics),
        Patch(color=VERMILION, alpha=0.22,
              label=f"where {ranges} end, over blocks and σ (dashed: median)"),
    ]  # fmt: skip
    layout.legend(figure, handles)
    return figure


def _draw_shares(axes: Axes, shares: np.ndarray, edges: np.ndarray, colour: str) -> None:
    axes.stairs(
        np.maximum(shares, _LOWEST_SHARE), edges, baseline=_LOWEST_SHARE, fill=True,
        facecolor=to_rgba(colour, 0.18), edgecolor=colour, linewidth=1.0,
    )  # fmt: skip


def _draw_density(
    axes: Axes, values: Sequence[Distribution], codes: Sequence[Codes], around: Sequence[float]
) -> None:
    """Both ends' values less `around`, and below them the interval of codes and every level."""
    ends = [
        (c.interval[0] - z, c.interval[1] - z, v.points[0] - z, v.points[-1] - z)
        for c, v, z in zip(codes, values, around, strict=True)
    ]
    low, high = min(map(min, ends)), max(map(max, ends))
    edges = np.linspace(low, high, _COLUMNS + 1)
    for which, (value, code, z, colour) in enumerate(
        zip(values, codes, around, _ENDS, strict=True)
    ):
        _draw_shares(axes, value.between(edges + z), edges, colour)
        # Under the zero of the axis: the interval as a bar, in it a tick a level.
        bottom, top = -0.12 - 0.1 * which, -0.04 - 0.1 * which
        across = axes.get_xaxis_transform()
        axes.fill_between(
            [code.interval[0] - z, code.interval[1] - z], bottom, top, color=colour, alpha=0.35,
            linewidth=0, transform=across, clip_on=False,
        )  # fmt: skip
        # One line with gaps: hundreds of lines of their own would be a large file.
        levels = np.repeat(code.levels() - z, 3)
        axes.plot(
            levels, np.tile([bottom, top, np.nan], len(levels) // 3), color=colour, linewidth=0.3,
            transform=across, clip_on=False,
        )  # fmt: skip
    axes.set_xlim(low, high)
    _share_axis(axes, _LOWEST_SHARE, 2)
    axes.tick_params(axis="x", pad=26)


def _draw_levels(axes: Axes, values: Sequence[Distribution], codes: Sequence[Codes]) -> str:
    """The share of values at each code; returns the entropy of both ends."""
    carried = []
    for value, code, colour in zip(values, codes, _ENDS, strict=True):
        shares = code.shares(value)
        edges = np.arange(code.low, code.high + 2) - 0.5
        _draw_shares(axes, shares, edges, colour)
        carried.append(f"{entropy(shares):.1f}")
    axes.set_xlim(codes[-1].low - 0.5, codes[-1].high + 0.5)
    axes.set_xticks([codes[-1].low, 0, codes[-1].high])
    _share_axis(axes, _LOWEST_SHARE, 2)
    return " and ".join(carried)


def _shift_label(numbers: Sequence[Any]) -> str:
    if any(np.size(one.shift) > 1 for one in numbers):
        low = min(float(np.min(one.shift)) for one in numbers)
        high = max(float(np.max(one.shift)) for one in numbers)
        span = f"{low:.2g} to {high:.2g}".replace("-", "−")
        return f"each channel has a shift z of its own, {span} (not drawn)"
    return "no shift"


def draw_ranges(shown: Shown) -> Figure:
    """The most variable inputs as they are, shifted, and as codes, where the range is extreme."""
    statistics, config = shown.statistics, shown.config
    chosen = layout.variable_of_both_kinds(statistics, shown.options.layers)
    figure = layout.new_figure(
        1.0 + 2.15 * len(chosen),
        f"Ranges over the distributions of the most variable inputs ({shown.made_by})",
    )  # fmt: skip
    grid = figure.add_gridspec(len(chosen), 3)
    for row, name in enumerate(chosen):
        measured = statistics.inputs[name]
        steps = [int(measured.absmax.argmin()), int(measured.absmax.argmax())]
        sigmas = [config.sigmas[step] for step in steps]
        numbers = params_along(config, config.layers[name], sigmas)
        values = [distribution(measured, step) for step in steps]
        codes = [codes_of(one, measured, step) for one, step in zip(numbers, steps, strict=True)]
        shifts = [code.shift for code in codes]
        is_shifted = any(shifts)
        raw = figure.add_subplot(grid[row, 0] if is_shifted else grid[row, :2])
        at = " and ".join(f"{statistics.sigmas[step]:.2g}" for step in steps)
        title = f"{shown.label(name)}: x at σ = {at}"
        layout.head(raw, title if is_shifted else f"{title}; {_shift_label(numbers)}", loc="left")
        _draw_density(raw, values, codes, [0.0, 0.0])
        if is_shifted:
            shifted = figure.add_subplot(grid[row, 1])
            z = " and ".join(f"{shift:.3g}" for shift in shifts).replace("-", "−")
            layout.head(shifted, f"x − z, z = {z}", loc="left")
            _draw_density(shifted, values, codes, shifts)
        levels = figure.add_subplot(grid[row, 2])
        carried = _draw_levels(levels, values, codes)
        bits = " and ".join(dict.fromkeys(str(one.bits) for one in numbers))
        layout.head(levels, f"codes: {carried} of {bits} bits of entropy", loc="left")
    figure.supylabel("share of values (a 240th of the axis; a code)", fontsize=9)
    words = "codes of the widest group" if config.channel_group else "codes"
    if config.granularity.is_dynamic:
        words = "codes at the calibration's extremes"
    labels = {
        BLUE: "σ of the smallest range",
        VERMILION: "σ of the largest range",
        "#777777": f"below an axis: the interval of {words}, a tick a level",
    }
    handles = [Patch(color=color, alpha=0.5, label=label) for color, label in labels.items()]
    layout.legend(figure, handles)
    return figure
