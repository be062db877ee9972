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
from . import activation_channels, activation_distributions, activation_maxima, activation_scales
from .charts import styled
from .layout import PlotOptions, Shown

_MODULES = (activation_channels, activation_distributions, activation_maxima, activation_scales)


@styled()
def draw(
    plot: str,
    statistics: Statistics,
    document: Mapping[str, Any],
    options: PlotOptions,
) -> Figure:
    """The figure named `plot`, one of `activation_names.ACTIVATION_PLOTS`.

    A module of the activation plots draws it by a function `draw_` with its name.

    Args:
        document: the configuration of the plot's `scheme`; empty if it has none.
    """
    name = f"draw_{plot}"
    function: Callable[[Shown], Figure] = next(
        getattr(module, name) for module in _MODULES if hasattr(module, name)
    )
    return function(Shown(statistics, document, options))
