"""Plots of the largest |x| of every linear's input: at steps, over sigma, and as heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure

from . import layout
from .charts import line_styles, log_axis
from .layout import COLUMNS, SIGMA, Shown

MAX_LABEL = "max |x| over images, tokens and channels"
_OTHERS = "#B8B8B8"
_LINEAR_FOLD = 8.0
_MOST_OCTAVES = 2.0
_MOST_ABOVE = 4.0


def draw_absmax(shown: Shown) -> Figure:
    """One panel a stream and kind of layer, one line a chosen step over the blocks."""
    statistics = shown.statistics
    title = "Largest |x| of every layer's input at chosen steps"
    figure, made = layout.curve_panels(statistics, title)
    positions = layout.nearest_steps(statistics.steps, shown.options.snapshot_steps)
    handles: list[Any] = []
    for panel, names in made:
        absmax = np.array([statistics.inputs[name].absmax for name in names])[:, positions]
        handles = [
            panel.plot(
                range(len(names)), absmax[:, column], "o-", color=shade, markersize=3.5,
                linewidth=1.1, label=f"σ = {statistics.sigmas[position]:.3g} "
                f"(step {statistics.steps[position]})",
            )[0]
            for column, (position, shade) in enumerate(
                zip(positions, layout.shades(len(positions)), strict=True)
            )
        ]  # fmt: skip
        layout.range_axis(panel, float(absmax.min()), float(absmax.max()))
        layout.block_axis(panel, names)
    figure.supylabel(MAX_LABEL, fontsize=9)
    layout.legend(figure, handles, min(6, len(handles)))
    return figure


def draw_drift(shown: Shown) -> Figure:
    """Ranges of the most variable inputs against sigma; beside them all, over their smallest."""
    statistics = shown.statistics
    chosen = layout.most_variable(statistics, shown.options.layers)
    figure = layout.new_figure(
        4.6 + 0.185 * -(-len(chosen) // 3), "How ranges drift over the schedule"
    )
    ranges, relative = figure.subplots(1, 2)
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    folds = {name: row / max(row.min(), 1e-12) for name, row in absmax.items()}
    for row in folds.values():
        relative.plot(statistics.sigmas, row, color=_OTHERS, linewidth=0.5, alpha=0.8)
    handles: list[Any] = []
    look: dict[str, Any] = {"markersize": 4, "linewidth": 1.4, "zorder": 3}
    for name, style in zip(chosen, line_styles(chosen).values(), strict=False):
        fold = f"{layout.drift(statistics.inputs[name]):.1f}-fold"
        label = f"{layout.input_label(name)} ({fold}{shown.after_gelu(name)})"
        handles += ranges.plot(statistics.sigmas, absmax[name], label=label, **look, **style)
        relative.plot(statistics.sigmas, folds[name], **look, **style)
    drawn = np.array([absmax[name] for name in chosen])
    layout.range_axis(ranges, float(drawn.min()), float(drawn.max()))
    ranges.set_title(f"The {len(chosen)} inputs whose range moves most")
    ranges.set_ylabel(MAX_LABEL)
    relative.set_title(f"All {len(absmax)} inputs (grey), each over its own smallest range")
    relative.set_ylabel("max |x| / its smallest over the schedule")
    largest = max(float(row.max()) for row in folds.values())
    if largest > _LINEAR_FOLD:
        log_axis(relative, "y")
    relative.set_ylim(0.97, 1.05 * largest)
    for axes in (ranges, relative):
        axes.grid(True)
        axes.set_xlabel(SIGMA, fontsize=9)
        layout.sigma_axis(axes, statistics.sigmas)
    layout.legend(figure, handles)
    return figure


def draw_heatmap(shown: Shown) -> Figure:
    """The largest |x| of every input at every measured step, on one logarithmic scale."""
    statistics = shown.statistics
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    everything = np.array(list(absmax.values()))
    floor = max(float(everything.max()) * 1e-4, 1e-12)
    low = max(float(everything.min()), floor)
    # A few layers may be far above the others, which are to keep most of the colours.
    usual = _MOST_ABOVE * float(np.quantile(everything, 0.97))
    high = max(min(float(everything.max()), usual), 1.5 * low)
    clip = "max" if everything.max() > high else "neither"
    values = {name: np.maximum(row, floor) for name, row in absmax.items()}
    norm = LogNorm(vmin=low, vmax=high)
    figure, bar, _ = layout.matrix_figure(
        statistics, "Range of every layer's input", values, clip, cmap="cividis", norm=norm
    )
    bar.set_label("max |x| (logarithmic)")
    powers = [power for power in 2.0 ** np.arange(-12, 18) if low <= power <= high]
    bar.set_ticks(powers, labels=[layout.power_label(power) for power in powers])
    bar.ax.minorticks_off()
    figure.supxlabel(COLUMNS, fontsize=9)
    return figure


def draw_variability(shown: Shown) -> Figure:
    """Every range over its own mean; beside each row the coefficient of variation."""
    statistics = shown.statistics
    title = "Variability: every layer's range as a multiple of its own mean over the schedule"
    octaves = {}
    for name, measured in statistics.inputs.items():
        absmax = np.maximum(measured.absmax.astype(np.float64), 1e-12)
        octaves[name] = np.log2(absmax / absmax.mean())
    end = max(0.25, max(float(np.abs(values).max()) for values in octaves.values()))
    # Few cells go far; without this clip the many that move by a half would all look alike.
    clip = "both" if end > _MOST_OCTAVES else "neither"
    end = min(end, _MOST_OCTAVES)
    norm = TwoSlopeNorm(0.0, -end, end)
    figure, bar, made = layout.matrix_figure(
        statistics, title, octaves, clip, cmap="PuOr_r", norm=norm
    )
    for panel, rows in made:
        for name, row in rows.items():
            percent = 100 * layout.variation(statistics.inputs[name])
            panel.text(
                1.015, row, f"{percent:.0f} %", transform=panel.get_yaxis_transform(),
                fontsize=6, va="center", clip_on=False,
            )  # fmt: skip
    bar.set_label("max |x| / its mean over σ")
    octave = 0.5 if end < 1.5 else 1.0
    ticks = np.arange(-np.floor(end / octave), np.floor(end / octave) + 1) * octave
    bar.set_ticks(ticks, labels=[f"{2.0**tick:.2g}×" for tick in ticks])
    figure.supxlabel(
        f"{COLUMNS}; right of a row: standard deviation over mean of its range", fontsize=9
    )
    return figure
