"""From activation statistics to scales: one tier for all (W4A8), or A4, A6 and A8 by range.

A symmetric b-bit quantizer has codes -2^(b-1) .. 2^(b-1) - 1 and the value s q + z of code q. Its
scale is s = range / qmax with qmax = 2^(b-1) - 1; the range itself as the step, a classic bug,
would leave three codes. Inputs that have passed GELU are never below -0.17: they are quantized
around the middle z = (min + max) / 2, so that the codes below zero are used too.

Ranges drift over the schedule, so scales are kept for each measured sigma (TaQ-DiT's "time-aware",
arXiv 2411.14172); inference looks them up by sigma, since it may use other steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .activation_statistics import InputStatistics, Statistics
from .activation_summary import measurement_of, rounded
from .histogram import bin_centers, bin_edges, quantile

CONFIG_FORMAT = "ditquant.quant_config"
RANGES = ("absmax", "p999", "mse")
GRANULARITIES = ("static", "step")
# The tiers of a multi-tier configuration, by rising range.
TIER_BITS = (4, 6, 8)

# An input that is always zero would have scale 0.
_SMALLEST_RANGE = 1e-6


def largest_code(bits: int) -> int:
    """qmax = 2^(bits - 1) - 1."""
    return 2 ** (bits - 1) - 1


def _clip_candidates(measured: InputStatistics, step: int) -> np.ndarray:
    """Upper ends of |x| worth trying: the absmax, and bin edges from a tenth of it on."""
    absmax = float(measured.absmax[step])
    edges = bin_edges()
    return np.append(edges[(edges > 0.1 * absmax) & (edges < absmax)], absmax)


def expected_error(histogram: np.ndarray, limit: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Sum of squared errors that quantization makes, from a histogram of |x|.

    Inside the limit a bin's middle is rounded where bins are finer than steps; elsewhere values
    are spread over many steps and err by s^2 / 12 on average. Outside, values are clipped.

    Args:
        histogram: (NUM_BINS,) counts.
        limit, scale: (K,) clip points and their scales.

    Returns:
        (K,) float64.
    """
    centers, widths = bin_centers(), np.diff(bin_edges())
    scale, limit = scale[:, None], limit[:, None]
    rounding = np.where(
        widths < scale, (centers - scale * np.rint(centers / scale)) ** 2, scale**2 / 12
    )
    error = np.where(centers <= limit, rounding, (centers - limit) ** 2)
    return (histogram * error).sum(axis=1)


def clip_limits(measured: InputStatistics, shifted: bool, rule: str, bits: int) -> np.ndarray:
    """(S,) float64: the |x| up to which each step's inputs are represented.

    Args:
        measured: statistics over S steps.
        shifted: quantize around the middle of [min, limit].
        rule: "absmax": the largest value seen; "p999": the 99.9 % point of |x|; "mse": the clip
            with the smallest expected squared error at this number of bits.
    """
    absmax = np.maximum(measured.absmax.astype(np.float64), _SMALLEST_RANGE)
    if rule == "absmax":
        return absmax
    if rule == "p999":
        return np.clip(quantile(measured.histogram, 0.999), _SMALLEST_RANGE, absmax)
    limits = []
    for step, largest in enumerate(absmax):
        candidates = np.maximum(_clip_candidates(measured, step), _SMALLEST_RANGE)
        low = -candidates if not shifted else np.float64(measured.minimum[step])
        scale = (candidates - low) / 2 / largest_code(bits)
        error = expected_error(measured.histogram[step], candidates, scale)
        limits.append(min(candidates[error.argmin()], largest))
    return np.array(limits)


def range_and_shift(
    measured: InputStatistics, post_gelu: bool, rule: str, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """(S,) half-width of the represented interval and (S,) its middle z, both float64.

    Args:
        post_gelu: the interval is [min, limit] and z its middle; else [-limit, limit] and z = 0.
        rule, bits: see `clip_limits`.
    """
    limit = clip_limits(measured, post_gelu, rule, bits)
    if not post_gelu:
        return limit, np.zeros_like(limit)
    low = np.minimum(measured.minimum.astype(np.float64), limit)
    return np.maximum((limit - low) / 2, _SMALLEST_RANGE), (low + limit) / 2


def float32_list(values: np.ndarray) -> list[float]:
    """Values that are exact in float32, written as short as they can be read back."""
    return [float(f"{value:.9g}") for value in np.asarray(values, dtype=np.float32)]


def _entry(
    statistics: Statistics, name: str, bits: np.ndarray, half: np.ndarray, shift: np.ndarray
) -> dict[str, Any]:
    """One layer of a configuration; arrays have one entry a sigma, or one in all."""
    measured = statistics.of(name)
    codes = np.array([largest_code(int(b)) for b in bits])
    entry = {
        "input": statistics.input_of[name],
        "channels": int(measured.channel_max.shape[1]),
        "bits": [int(b) for b in bits],
        "scales": float32_list(half / codes),
        "input_amax": float32_list(measured.absmax.max(keepdims=True))[0],
    }
    if name in statistics.post_gelu:
        entry["shifts"] = float32_list(shift)
    return entry


def _measured(statistics: Statistics, name: str, granularity: str) -> InputStatistics:
    measured = statistics.of(name)
    return measured.pooled() if granularity == "static" else measured


def single_tier(
    statistics: Statistics, bits: int, granularity: str, rule: str
) -> dict[str, Any]:  # fmt: skip
    """The document `ditquant.quant_config` with one number of bits for every layer.

    Args:
        granularity: "step" (a scale for each measured sigma) or "static" (one a layer).
        rule: where ranges end, see `clip_limits`.
    """
    layers = {}
    for name in statistics.input_of:
        measured = _measured(statistics, name, granularity)
        half, shift = range_and_shift(measured, name in statistics.post_gelu, rule, bits)
        layers[name] = _entry(statistics, name, np.full(len(half), bits), half, shift)
    return {
        **measurement_of(statistics),
        "configuration": {"bits": bits, "granularity": granularity, "range": rule},
        "layers": layers,
    }


def tier_of(half: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """(S,) bits: 4 up to limits[0], 6 up to limits[1], 8 above; `half` is (S,) half ranges."""
    return np.array(TIER_BITS)[np.searchsorted(np.asarray(limits), half)]


def multi_tier(
    statistics: Statistics, granularity: str, rule: str, tiers: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The document `ditquant.quant_config` with a tier for each layer and sigma.

    Args:
        granularity, rule: see `single_tier`; the range that chooses a tier is the one at 8 bits.
        tiers: "linear" and "post_gelu" -> (upper limit of A4, upper limit of A6).
    """
    layers = {}
    for name in statistics.input_of:
        measured = _measured(statistics, name, granularity)
        post_gelu = name in statistics.post_gelu
        by_bits = {b: range_and_shift(measured, post_gelu, rule, b) for b in TIER_BITS}
        limits = tiers["post_gelu" if post_gelu else "linear"]
        bits = tier_of(by_bits[TIER_BITS[-1]][0], limits)
        half, shift = (
            np.array([by_bits[int(b)][part][step] for step, b in enumerate(bits)])
            for part in (0, 1)
        )
        layers[name] = _entry(statistics, name, bits, half, shift)
    return {
        **measurement_of(statistics),
        "configuration": {
            "tiers": {kind: list(limits) for kind, limits in tiers.items()},
            "granularity": granularity,
            "range": rule,
        },
        "summary": tier_summary(statistics, layers),
        "layers": layers,
    }


def tier_summary(statistics: Statistics, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Share of each tier over (layer, sigma), average bits, and which layers do what.

    `average_bits` weighs a layer by the values in its input, so that it is proportional to memory.
    """
    bits = np.array(
        [np.broadcast_to(entry["bits"], len(statistics.sigmas)) for entry in layers.values()]
    )
    values = np.array([statistics.of(name).count for name in layers])
    names = np.array(list(layers))
    tiers = {f"A{b}": bits == b for b in TIER_BITS}
    return {
        "shares": {tier: rounded(chosen.mean())[0] for tier, chosen in tiers.items()},
        "average_bits": rounded(np.average(bits, weights=values))[0],
        "layers_per_sigma": {
            tier: [int(count) for count in chosen.sum(axis=0)] for tier, chosen in tiers.items()
        },
        "switching_layers": names[bits.min(axis=1) < bits.max(axis=1)].tolist(),
        "always_a8_layers": names[bits.min(axis=1) == TIER_BITS[-1]].tolist(),
    }
