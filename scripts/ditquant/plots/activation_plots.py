"""Plots of activation statistics and of the configurations made from them.

Every plot shows inputs rather than linears (q, k and v read one). Panels are laid out by stream and
kind of layer with the blocks along an axis, so that 24 or 57 blocks read as well as 6; where only
some layers have room, they are those that move most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from ..activations.input_statistics import Statistics
from .activation_channels import draw_channels, draw_outliers
from .activation_distributions import draw_distributions, draw_ranges
from .activation_maxima import draw_absmax, draw_drift, draw_heatmap, draw_variability
from .activation_panels import PlotOptions, Shown
from .activation_scales import draw_coverage, draw_scales, draw_tiers
from .charts import styled

_DRAWING: dict[str, Callable[[Shown], Figure]] = {
    "absmax": draw_absmax,
    "drift": draw_drift,
    "heatmap": draw_heatmap,
    "variability": draw_variability,
    "channels": draw_channels,
    "outliers": draw_outliers,
    "distributions": draw_distributions,
    "ranges": draw_ranges,
    "scales": draw_scales,
    "coverage": draw_coverage,
    "tiers": draw_tiers,
}


@styled()
def draw(
    plot: str,
    statistics: Statistics,
    document: Mapping[str, Any],
    options: PlotOptions,
) -> Figure:
    """The figure named `plot`, one of `activation_names.ACTIVATION_PLOTS`.

    Args:
        document: the configuration of the plot's `scheme`; empty if it has none.
    """
    return _DRAWING[plot](Shown(statistics, document, options))
