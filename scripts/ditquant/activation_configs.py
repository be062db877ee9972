"""An activation configuration, of one tier or of several, as the workflow's options ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .activation_statistics import Statistics
from .activation_summary import rounded
from .intervals import LEARNED
from .learned_ranges import Intervals
from .quant_config import QuantConfig, parse_quant_config
from .ranges import ScaleOptions, rows_of_steps, single_tier
from .sensitivity import MEASURED_WEIGHTINGS, predicted_errors, sensitive_tiers
from .tiers import TIER_BITS, multi_tier
from .velocity_sensitivity import Sensitivity, latent_errors


def _scale_options(asked: Mapping[str, Any], learned: Intervals | None) -> ScaleOptions:
    options = ScaleOptions(**asked["options"])
    return replace(options, learned=learned) if learned and asked["range"] == LEARNED else options


def make_config(
    statistics: Statistics,
    asked: Mapping[str, Any],
    gains: Callable[[], Mapping[str, float]],
    sensitivity: Callable[[], Sensitivity],
    learned: Intervals | None = None,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` of one of the workflow's activation configurations.

    Args:
        asked: of `variant_names.activation_configs`.
        gains: gives `sensitivity.input_gains` of the weights behind the inputs; only called where
            tiers weigh errors by them.
        sensitivity: gives what was measured of velocities; likewise.
        learned: of `learned_ranges`, for `range: learned`.
    """
    options = _scale_options(asked, learned)
    scales = asked["granularity"], asked["range"]
    if "bits" in asked:
        return single_tier(statistics, asked["bits"], *scales, options)
    tiers = asked["tiers"]
    if tiers["mode"] == "threshold":
        limits = {kind: tiers[kind] for kind in ("linear", "post_gelu")}
        return multi_tier(statistics, *scales, limits, options)
    row_of = rows_of_steps(statistics, *scales, TIER_BITS[-1], options)
    gains_of_steps: dict[float, float] = {}
    if tiers["weighting"] in MEASURED_WEIGHTINGS:
        measured = sensitivity()
        gains_of_steps = measured.gains
        errors = latent_errors(statistics, row_of, measured)
    else:
        weights = gains() if tiers["weighting"] == "output" else None
        errors = predicted_errors(statistics, row_of, asked["range"], options, weights)
    document = sensitive_tiers(
        statistics, *scales, tiers["average_bits"], tiers["weighting"], errors, options
    )
    if gains_of_steps:
        values = rounded(np.array(list(gains_of_steps.values())))
        names = (f"{sigma:.4f}" for sigma in gains_of_steps)
        document["summary"]["gains"] = dict(zip(names, values, strict=True))
    return document


def tier_configs(
    statistics: Statistics, asked: Mapping[str, Any], learned: Intervals | None = None
) -> dict[int, QuantConfig]:
    """A configuration of each tier alone, with the granularity of a multi-tier one: bits -> it.

    Args:
        asked, learned: see `make_config`.
    """
    options = _scale_options(asked, learned)
    made = {
        bits: single_tier(statistics, bits, asked["granularity"], asked["range"], options)
        for bits in TIER_BITS
    }
    return {bits: parse_quant_config(one, f"{bits} bits") for bits, one in made.items()}
