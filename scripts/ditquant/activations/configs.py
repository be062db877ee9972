"""An activation configuration, of one tier or of several, as the workflow's options ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .clip_errors import SHARES, ClipErrors, best_shares, errors_of_rows, shares_of_inputs
from .input_statistics import Statistics
from .intervals import LEARNED, MEASURED
from .learned_ranges import Intervals
from .quant_config import QuantConfig, parse_quant_config
from .sensitivity import MEASURED_WEIGHTINGS, predicted_errors, sensitive_tiers
from .single_tier import ScaleOptions, rows_of_steps, single_tier
from .summary import TINY, rounded
from .tiers import TIER_BITS, multi_tier
from .velocity_errors import Sensitivity, latent_errors


def _row_errors(
    statistics: Statistics, asked: Mapping[str, Any], options: ScaleOptions, measured: ClipErrors
) -> dict[int, dict[str, np.ndarray]]:
    row_of = rows_of_steps(statistics, asked["granularity"], MEASURED, TIER_BITS[-1], options)
    return errors_of_rows(statistics, row_of, measured)


def _scale_options(
    statistics: Statistics,
    asked: Mapping[str, Any],
    learned: Intervals | None,
    clips: ClipErrors | None,
) -> ScaleOptions:
    options = ScaleOptions(**asked["options"])
    if learned and asked["range"] == LEARNED:
        options = replace(options, learned=learned)
    if clips is not None and "clips" in asked:
        errors = _row_errors(statistics, asked, options, clips)
        options = replace(options, shares=shares_of_inputs(errors))
    return options


def clip_configs(statistics: Statistics, asked: Mapping[str, Any]) -> dict[int, list[QuantConfig]]:
    """What `clip_search.measure_clip_errors` tries: bits -> configurations of each share.

    Args:
        asked: see `make_config`; one that has "clips".
    """
    options = ScaleOptions(**asked["options"])
    scales = asked["granularity"], MEASURED

    def tried(bits: int, share: float) -> QuantConfig:
        shares = {bits: dict.fromkeys(statistics.inputs, np.array(share))}
        document = single_tier(statistics, bits, *scales, replace(options, shares=shares))
        return parse_quant_config(document, f"{bits} bits, ranges of {share}")

    all_bits = (asked["bits"],) if "bits" in asked else TIER_BITS
    return {bits: [tried(bits, share) for share in SHARES] for bits in all_bits}


def _with_clips(
    document: dict[str, Any],
    statistics: Statistics,
    asked: Mapping[str, Any],
    options: ScaleOptions,
    clips: ClipErrors,
) -> dict[str, Any]:
    """The document with what its ranges were chosen by, see `quant_config`."""
    errors = _row_errors(statistics, asked, options, clips)
    document["clips"] = {
        "images": list(clips.images),
        "sigmas": [float(f"{sigma:.9g}") for sigma in clips.sigmas],
        "shares": list(SHARES),
    }
    for name, entry in document["layers"].items():
        of_input = {bits: one[statistics.input_of[name]] for bits, one in errors.items()}
        count = len(next(iter(of_input.values())))
        bits = np.broadcast_to(entry["bits"], count)
        rows = np.array([of_input[int(b)][row] for row, b in enumerate(bits)])
        entry["clip_shares"] = rounded(best_shares(rows))
        relative = rows / np.maximum(rows[:, :1], TINY)
        entry["clip_errors"] = [rounded(row) for row in relative]
    return document


def make_config(
    statistics: Statistics,
    asked: Mapping[str, Any],
    gains: Callable[[], Mapping[str, float]],
    sensitivity: Callable[[], Sensitivity],
    learned: Intervals | None = None,
    clips: ClipErrors | None = None,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` of one of the workflow's activation configurations.

    Args:
        asked: of `variant_names.activation_configs`.
        gains: gives `sensitivity.input_gains` of the weights behind the inputs; only called where
            tiers weigh errors by them.
        sensitivity: gives what was measured of velocities; likewise.
        learned: of `learned_ranges`, for `range: learned`.
        clips: of `measure_clips`, where `asked` has "clips".
    """
    options = _scale_options(statistics, asked, learned, clips)
    document = _chosen(statistics, asked, options, gains, sensitivity)
    if clips is not None and "clips" in asked:
        return _with_clips(document, statistics, asked, options, clips)
    return document


def _chosen(
    statistics: Statistics,
    asked: Mapping[str, Any],
    options: ScaleOptions,
    gains: Callable[[], Mapping[str, float]],
    sensitivity: Callable[[], Sensitivity],
) -> dict[str, Any]:
    """The document of one tier, or of several; see `make_config`."""
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
    statistics: Statistics,
    asked: Mapping[str, Any],
    learned: Intervals | None = None,
    clips: ClipErrors | None = None,
) -> dict[int, QuantConfig]:
    """A configuration of each tier alone, with the granularity of a multi-tier one: bits -> it.

    Args:
        asked, learned, clips: see `make_config`.
    """
    options = _scale_options(statistics, asked, learned, clips)
    made = {
        bits: single_tier(statistics, bits, asked["granularity"], asked["range"], options)
        for bits in TIER_BITS
    }
    return {bits: parse_quant_config(one, f"{bits} bits") for bits, one in made.items()}
