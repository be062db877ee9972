"""From activation statistics to scales, with one number of bits for all layers (W4A8).

A symmetric b-bit quantizer has codes -2^(b-1) .. 2^(b-1) - 1 and the value s q + z of code q. Its
scale is s = range / qmax with qmax = 2^(b-1) - 1; the range itself as the step, a classic bug,
would leave three codes. Inputs that have passed GELU are never below -0.17: they are quantized
around the middle z = (min + max) / 2, so that the codes below zero are used too.

Ranges drift over the schedule, so scales follow sigma (TaQ-DiT's "time-aware", arXiv 2411.14172):
one for each measured sigma, one for each group of adjacent ones, or a polynomial; or they are made
at run time from the values. Inference looks up by sigma, since it may use other steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .activation_statistics import InputStatistics, Statistics
from .activation_summary import measurement_of
from .histogram import bin_centers, bin_edges, quantile
from .polynomials import evaluate, least_squares, upper_fit, variable_of
from .segments import grouped, segment

CONFIG_FORMAT = "ditquant.quant_config"
RANGES = ("absmax", "p999", "mse")
# The range is computed at run time, of a picture's whole tensor or of each token.
DYNAMIC = ("dynamic-tensor", "dynamic-token")
GRANULARITIES = ("static", "step", "group", "polynomial", *DYNAMIC)

# An input that is always zero would have scale 0.
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True)
class ScaleOptions:
    """What some granularities ask for: keys below `activations`.

    Attributes:
        groups: sigma groups of granularity `group`; fewer where fewer steps were measured.
        degree, variable: of granularity `polynomial`, see `polynomials`.
    """

    groups: int = 5
    degree: int = 3
    variable: str = "sigma"


DEFAULT_OPTIONS = ScaleOptions()


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
    absmax = np.maximum(measured.absmax.astype(np.float64), SMALLEST_RANGE)
    if rule == "absmax":
        return absmax
    if rule == "p999":
        return np.clip(quantile(measured.histogram, 0.999), SMALLEST_RANGE, absmax)
    limits = []
    for step, largest in enumerate(absmax):
        candidates = np.maximum(_clip_candidates(measured, step), SMALLEST_RANGE)
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
    return np.maximum((limit - low) / 2, SMALLEST_RANGE), (low + limit) / 2


def float32_list(values: np.ndarray) -> list[float]:
    """Values that are exact in float32, written as short as they can be read back."""
    return [float(f"{value:.9g}") for value in np.asarray(values, dtype=np.float32)]


def rows_of_steps(
    statistics: Statistics, granularity: str, rule: str, bits: int, options: ScaleOptions
) -> list[int]:
    """The row of each measured step: all 0 for `static`, the group for `group`, else its own."""
    steps = len(statistics.sigmas)
    if granularity == "static":
        return [0] * steps
    if granularity != "group":
        return list(range(steps))
    halves = [
        range_and_shift(measured, name in statistics.post_gelu, rule, bits)[0]
        for name, measured in statistics.inputs.items()
    ]
    return segment(np.log2(halves), options.groups)


def layer_entry(
    statistics: Statistics,
    name: str,
    granularity: str,
    options: ScaleOptions,
    bits: np.ndarray,
    half: np.ndarray,
    shift: np.ndarray,
) -> dict[str, Any]:
    """One layer of a configuration, as `quant_config` describes it.

    Args:
        bits: (R,) of each row, or (1,) for all; R where scales are listed.
        half, shift: (R,) half ranges and shifts, see `range_and_shift`.
    """
    measured = statistics.of(name)
    entry: dict[str, Any] = {
        "input": statistics.input_of[name],
        "channels": int(measured.channel_max.shape[1]),
        "bits": [int(b) for b in bits],
    }
    is_shifted = name in statistics.post_gelu
    if granularity == "polynomial":
        x = variable_of(statistics.sigmas, options.variable)
        if is_shifted:
            fitted = least_squares(x, shift, options.degree)
            entry["shift_polynomial"] = fitted
            # Around a shift that is a little off, the same interval needs a wider range.
            half = half + np.abs(evaluate(fitted, x) - shift)
        entry["log_range"] = upper_fit(x, np.log(half), options.degree)
    elif granularity not in DYNAMIC:
        codes = np.array([largest_code(int(b)) for b in bits])
        entry["scales"] = float32_list(half / codes)
    entry["input_amax"] = float32_list(measured.absmax.max(keepdims=True))[0]
    if is_shifted and granularity != "polynomial":
        entry["shifts"] = float32_list(shift)
    return entry


def header(statistics: Statistics, granularity: str, row_of: list[int]) -> dict[str, Any]:
    """The start of a configuration: what was measured, and the group of each measured sigma."""
    groups = {"groups": row_of} if granularity == "group" else {}
    return {**measurement_of(statistics), **groups}


def scale_record(granularity: str, rule: str, options: ScaleOptions) -> dict[str, Any]:
    """What the configuration says of how its scales were made; only options that were used."""
    used: dict[str, Any] = {"granularity": granularity, "range": rule}
    if granularity == "group":
        used["groups"] = options.groups
    if granularity == "polynomial":
        used |= {"degree": options.degree, "variable": options.variable}
    return used


def single_tier(
    statistics: Statistics,
    bits: int,
    granularity: str,
    rule: str,
    options: ScaleOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """The document `ditquant.quant_config` with one number of bits for every layer.

    Args:
        granularity: one of GRANULARITIES.
        rule: where ranges end, see `clip_limits`; dynamic ranges take the largest |x - z|.
    """
    row_of = rows_of_steps(statistics, granularity, rule, bits, options)
    is_listed = granularity not in ("polynomial", *DYNAMIC)
    layers = {}
    for name in statistics.input_of:
        measured = grouped(statistics.of(name), row_of)
        half, shift = range_and_shift(measured, name in statistics.post_gelu, rule, bits)
        all_bits = np.full(len(half) if is_listed else 1, bits)
        layers[name] = layer_entry(
            statistics, name, granularity, options, all_bits, half, shift
        )  # fmt: skip
    return {
        **header(statistics, granularity, row_of),
        "configuration": {"bits": bits, **scale_record(granularity, rule, options)},
        "layers": layers,
    }
