"""Plots of the largest |x| of every linear's input: at chosen steps, and its drift over sigma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..activations.input_statistics import Statistics
from .activation_panels import (
    PAGE_WIDTH,
    SIGMA,
    PlotOptions,
    block_axis,
    input_label,
    new_figure,
    panels,
    panels_height,
    range_axis,
    shades,
    sigma_axis,
)
from .activation_ranking import drift, most_variable, nearest_steps
from .charts import line_styles, log_axis

MAX_LABEL = "max |x| over images, tokens and channels"
_OTHERS = "#B8B8B8"
_LINEAR_FOLD = 8.0


def draw_absmax(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """One panel a stream and kind of layer, one line a chosen step over the blocks."""
    figure = new_figure(
        PAGE_WIDTH, panels_height(statistics), "Largest |x| of every layer's input at chosen steps"
    )
    positions = nearest_steps(statistics.steps, options.snapshot_steps)
    handles: list[Any] = []
    for panel, names in panels(figure, statistics):
        absmax = np.array([statistics.inputs[name].absmax for name in names])[:, positions]
        handles = [
            panel.plot(
                range(len(names)), absmax[:, column], "o-", color=shade, markersize=3.5,
                linewidth=1.1, label=f"σ = {statistics.sigmas[position]:.3g} "
                f"(step {statistics.steps[position]})",
            )[0]
            for column, (position, shade) in enumerate(
                zip(positions, shades(len(positions)), strict=True)
            )
        ]  # fmt: skip
        range_axis(panel, float(absmax.min()), float(absmax.max()))
        block_axis(panel, names)
    figure.supylabel(MAX_LABEL, fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    return figure


def draw_drift(
    statistics: Statistics, documents: Sequence[Mapping[str, Any]], options: PlotOptions
) -> Figure:
    """Ranges of the most variable inputs against sigma; beside them all, over their smallest."""
    chosen = most_variable(statistics, options.layers)
    figure = new_figure(
        PAGE_WIDTH, 4.6 + 0.185 * -(-len(chosen) // 3), "How ranges drift over the schedule"
    )
    ranges, relative = figure.subplots(1, 2)
    absmax = {name: measured.absmax for name, measured in statistics.inputs.items()}
    for row in absmax.values():
        relative.plot(
            statistics.sigmas, row / max(row.min(), 1e-12), color=_OTHERS, linewidth=0.5, alpha=0.8
        )
    handles: list[Any] = []
    for name, style in zip(chosen, line_styles(chosen).values(), strict=False):
        style = {"markersize": 4, "linewidth": 1.4, "zorder": 3, **style}
        fold = f"{drift(statistics.inputs[name]):.1f}-fold"
        gelu = ", after GELU" if name in statistics.post_gelu else ""
        label = f"{input_label(name)} ({fold}{gelu})"
        handles += ranges.plot(statistics.sigmas, absmax[name], label=label, **style)
        relative.plot(
            statistics.sigmas, absmax[name] / max(absmax[name].min(), 1e-12), **style
        )  # fmt: skip
    shown = np.array([absmax[name] for name in chosen])
    range_axis(ranges, float(shown.min()), float(shown.max()))
    ranges.set_title(f"The {len(chosen)} inputs whose range moves most")
    ranges.set_ylabel(MAX_LABEL)
    relative.set_title(f"All {len(absmax)} inputs (grey), each over its own smallest range")
    relative.set_ylabel("max |x| / its smallest over the schedule")
    largest = max(float(row.max() / max(row.min(), 1e-12)) for row in absmax.values())
    if largest > _LINEAR_FOLD:
        log_axis(relative, "y")
    relative.set_ylim(0.97, 1.05 * largest)
    for axes in (ranges, relative):
        axes.grid(True)
        axes.set_xlabel(SIGMA, fontsize=9)
        sigma_axis(axes, statistics.sigmas)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
