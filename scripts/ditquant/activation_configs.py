"""An activation configuration, of one tier or of several, as the workflow's options ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .activation_statistics import Statistics
from .ranges import ScaleOptions, single_tier
from .sensitivity import sensitive_tiers
from .tiers import multi_tier


def make_config(
    statistics: Statistics, asked: Mapping[str, Any], gains: Callable[[], Mapping[str, float]]
) -> dict[str, Any]:
    """The document `ditquant.quant_config` of one of the workflow's activation configurations.

    Args:
        asked: of `variant_names.activation_configs`.
        gains: gives `sensitivity.input_gains` of the weights behind the inputs; only called where
            tiers weigh errors by them.
    """
    options = ScaleOptions(**asked["options"])
    scales = asked["granularity"], asked["range"]
    if "bits" in asked:
        return single_tier(statistics, asked["bits"], *scales, options)
    tiers = asked["tiers"]
    if tiers["mode"] == "threshold":
        limits = {kind: tiers[kind] for kind in ("linear", "post_gelu")}
        return multi_tier(statistics, *scales, limits, options)
    weights = gains() if tiers["weighting"] == "output" else None
    return sensitive_tiers(statistics, *scales, tiers["average_bits"], weights, options)
