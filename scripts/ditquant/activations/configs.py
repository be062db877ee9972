"""The configuration of an activation scheme: what was measured, as scales for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .clip_errors import SHARES, ClipErrors, best_shares
from .fit import Fit
from .input_statistics import Statistics
from .learned_ranges import Intervals
from .quant_config import QuantConfig, parse_quant_config
from .scheme import TIER_BITS, ActivationScheme
from .summary import TINY, rounded
from .tiers import predicted_errors, tiers_by_error, tiers_by_range
from .velocity_errors import Sensitivity, latent_errors


def _single_tier(fit: Fit) -> dict[str, Any]:
    """The document `ditquant.quant_config` with one number of bits for every layer."""
    bits = np.full(fit.rows, fit.scheme.bits)
    return {
        **fit.header,
        "configuration": {"bits": fit.scheme.bits, **fit.record},
        "layers": fit.layers(dict.fromkeys(fit.statistics.input_of, bits)),
    }


def _multi_tier(
    fit: Fit,
    gains: Callable[[], Mapping[str, float]] | None,
    sensitivity: Callable[[], Sensitivity] | None,
) -> dict[str, Any]:
    scheme = fit.scheme
    assert scheme.tiers is not None
    if scheme.tiers.by_error is None:
        return tiers_by_range(fit, scheme.tiers)
    if not scheme.needs_sensitivity:
        weights = gains() if gains and scheme.needs_weights else None
        return tiers_by_error(fit, scheme.tiers, predicted_errors(fit, weights))
    assert sensitivity is not None
    measured = sensitivity()
    errors = latent_errors(fit.statistics, fit.row_of, measured)
    document = tiers_by_error(fit, scheme.tiers, errors)
    if measured.gains:
        values = rounded(np.array(list(measured.gains.values())))
        names = (f"{sigma:.4f}" for sigma in measured.gains)
        document["summary"]["gains"] = dict(zip(names, values, strict=True))
    return document


def make_config(
    statistics: Statistics,
    scheme: ActivationScheme,
    gains: Callable[[], Mapping[str, float]] | None = None,
    sensitivity: Callable[[], Sensitivity] | None = None,
    learned: Intervals | None = None,
    clips: ClipErrors | None = None,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` of a scheme.

    Args:
        gains: gives `tiers.input_gains` of the weights behind the inputs; only called where tiers
            weigh errors by them.
        sensitivity: gives what was measured of velocities; likewise.
        learned: of `learned_ranges`, for the range "learned".
        clips: of `measure_clips`, where the scheme tries shorter ranges.
    """
    fit = Fit(statistics, scheme, learned, clips)
    single = scheme.tiers is None
    document = _single_tier(fit) if single else _multi_tier(fit, gains, sensitivity)
    if clips is not None and fit.clip_errors:
        document["clips"] = {
            "images": list(clips.images),
            "sigmas": [float(f"{sigma:.9g}") for sigma in clips.sigmas],
            "shares": list(SHARES),
        }
        for name, entry in document["layers"].items():
            entry |= _clip_record(fit, name, entry["bits"])
    return document


def _clip_record(fit: Fit, name: str, entry_bits: list[int]) -> dict[str, Any]:
    """What a layer's ranges were chosen by, see `quant_config`."""
    of_input = {
        bits: errors[fit.statistics.input_of[name]] for bits, errors in fit.clip_errors.items()
    }
    bits = np.broadcast_to(entry_bits, fit.rows)
    rows = np.array([of_input[int(b)][row] for row, b in enumerate(bits)])
    relative = rows / np.maximum(rows[:, :1], TINY)
    return {
        "clip_shares": rounded(best_shares(rows)),
        "clip_errors": [rounded(row) for row in relative],
    }


def _of_bits(scheme: ActivationScheme, bits: int) -> ActivationScheme:
    return replace(scheme, bits=bits, tiers=None)


def clip_configs(statistics: Statistics, scheme: ActivationScheme) -> dict[int, list[QuantConfig]]:
    """What `clip_search.measure_clip_errors` tries: bits -> configurations of each share."""

    def tried(bits: int, share: float) -> QuantConfig:
        shares = {bits: dict.fromkeys(statistics.inputs, np.array(share))}
        fit = Fit(statistics, _of_bits(scheme, bits), shares=shares)
        return parse_quant_config(_single_tier(fit), f"{bits} bits, ranges of {share}")

    return {bits: [tried(bits, share) for share in SHARES] for bits in scheme.all_bits}


def tier_configs(
    statistics: Statistics,
    scheme: ActivationScheme,
    learned: Intervals | None = None,
    clips: ClipErrors | None = None,
) -> dict[int, QuantConfig]:
    """A configuration of each tier alone, with the granularity of a multi-tier one: bits -> it.

    Args:
        learned, clips: see `make_config`.
    """
    return {
        bits: parse_quant_config(
            _single_tier(Fit(statistics, _of_bits(scheme, bits), learned, clips)), f"{bits} bits"
        )
        for bits in TIER_BITS
    }
