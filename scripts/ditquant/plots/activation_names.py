"""The plots of the activation track by name, and what each shows.

The workflow reads this module while it plans, so it does not import matplotlib; `activation_plots`
draws them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..activations.scheme import MULTI_TIER, SINGLE_TIER


@dataclass(frozen=True)
class ActivationPlot:
    """One plot.

    Attributes:
        note: what there is to see, in one sentence for a reader of the report.
        scheme: the activation scheme whose configuration is drawn; None: statistics alone are.
        is_distribution: it shows how values, channels or codes are distributed.
    """

    note: str
    scheme: str | None = None
    is_distribution: bool = False


ACTIVATION_PLOTS = {
    "absmax": ActivationPlot("Which layers have large inputs, and at which noise level."),
    "drift": ActivationPlot(
        "What one scale for the whole schedule would waste on the layers that move."
    ),
    "heatmap": ActivationPlot("The range of every layer at every measured noise level."),
    "variability": ActivationPlot(
        "Where a layer is above its own average (orange) and where below."
    ),
    "channels": ActivationPlot(
        "How far a layer's largest channel is from the others that share its scale.",
        is_distribution=True,
    ),
    "outliers": ActivationPlot(
        "The worst of these channel by channel, and whether outliers stay.", is_distribution=True
    ),
    "distributions": ActivationPlot(
        "Where values lie, and where the configured ranges end.", SINGLE_TIER, is_distribution=True
    ),
    "ranges": ActivationPlot(
        "What codes stand for, before and after the shift, and how many are used.",
        SINGLE_TIER, is_distribution=True,
    ),
    "scales": ActivationPlot("The scale that inference looks up at a noise level.", SINGLE_TIER),
    "coverage": ActivationPlot(
        "How closely the configured range follows the measured one.", SINGLE_TIER
    ),
    "tiers": ActivationPlot("Which layers get 4, 6 or 8 bits, and when.", MULTI_TIER),
}  # fmt: skip


def plot_files(distributions: bool, animate: bool) -> list[str]:
    """The files of all plots.

    Args:
        distributions: with those of distributions.
        animate: with the animated drift.
    """
    files = [
        f"{name}.{suffix}"
        for name, plot in ACTIVATION_PLOTS.items()
        if distributions or not plot.is_distribution
        for suffix in ("png", "svg")
    ]
    return [*files, "drift.gif"] if animate else files
