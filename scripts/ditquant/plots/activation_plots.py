"""Plots of activation statistics and of the configurations made from them.

Every plot shows inputs rather than linears (q, k and v read one). Panels are laid out by stream and
kind of layer with the blocks along an axis, so that 24 or 57 blocks read as well as 6; where only
some layers have room, they are those that move most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ..activations.input_statistics import Statistics
from .activation_channels import draw_channels, draw_outliers
from .activation_distributions import draw_distributions, draw_ranges
from .activation_heatmaps import draw_heatmap, draw_tiers, draw_variability
from .activation_maxima import draw_absmax, draw_drift
from .activation_panels import PlotOptions
from .activation_scales import draw_coverage, draw_scales
from .charts import styled


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        draw: called with statistics, configurations and options.
        note: what there is to see, in one sentence for a reader of the report.
        configs: names of the configurations it needs, in order.
    """

    draw: Callable[[Statistics, Sequence[Mapping[str, Any]], PlotOptions], Figure]
    note: str
    configs: tuple[str, ...] = ()


PLOTS = {
    "absmax": Plot(draw_absmax, "Which layers have large inputs, and at which noise level."),
    "drift": Plot(
        draw_drift, "What one scale for the whole schedule would waste on the layers that move."
    ),
    "heatmap": Plot(draw_heatmap, "The range of every layer at every measured noise level."),
    "variability": Plot(
        draw_variability, "Where a layer is above its own average (orange) and where below."
    ),
    "channels": Plot(
        draw_channels, "How far a layer's largest channel is from the others that share its scale."
    ),
    "outliers": Plot(
        draw_outliers, "The worst of these channel by channel, and whether outliers stay."
    ),
    "distributions": Plot(
        draw_distributions, "Where values lie, and where the configured ranges end.",
        ("quant_config",),
    ),
    "ranges": Plot(
        draw_ranges, "What codes stand for, before and after the shift, and how many are used.",
        ("quant_config",),
    ),
    "scales": Plot(
        draw_scales, "The scale that inference looks up at a noise level.", ("quant_config",)
    ),
    "coverage": Plot(
        draw_coverage, "How closely the configured range follows the measured one.",
        ("quant_config",),
    ),
    "tiers": Plot(
        draw_tiers, "Which layers get 4, 6 or 8 bits, and when.", ("quant_config_multitier",)
    ),
}  # fmt: skip


@styled()
def draw(
    plot: str,
    statistics: Statistics,
    documents: Sequence[Mapping[str, Any]],
    options: PlotOptions,
) -> Figure:
    """The figure named `plot`, one of PLOTS.

    Args:
        documents: the configurations that the plot needs, see `Plot.configs`.
    """
    return PLOTS[plot].draw(statistics, documents, options)
