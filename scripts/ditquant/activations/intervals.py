"""The interval that an input's codes stand for: where it ends, its middle, and what that costs.

A symmetric b-bit quantizer has codes -2^(b-1) .. 2^(b-1) - 1 and the value s q + z of code q. Its
scale is s = range / qmax with qmax = 2^(b-1) - 1; the range itself as the step, a classic bug,
would leave three codes. Inputs that have passed GELU are never below -0.17: around z = 0 nearly all
codes below zero would stand for nothing, so z is one of

    middle   (min + limit) / 2, the middle of what was measured
    gelu     such that the lowest code stands for -0.171875, just below GELU's minimum of -0.16997:
             the unsigned quantizer of [-0.171875, limit], whatever was measured below zero
    zero     0: half the codes, but zero itself is one of them
    error    whichever of the three has the least predicted error, row by row

At inference W(x - z) + (b + W z) with x - z rounded is the same as W applied to the rounded x - z
plus z: a kernel folds W z into the bias, the simulation here subtracts and adds z around the
rounding.
"""

from __future__ import annotations

import numpy as np

from .histogram import bin_centers, bin_edges, quantile
from .input_statistics import InputStatistics
from .quant_params import largest_code
from .scheme import LEARNED, MEASURED

SHIFTS = ("middle", "gelu", "zero", "error")
# The lowest value that unsigned codes of a post-GELU input stand for: -11/64.
GELU_LOW = -0.171875

# An input that is always zero would have scale 0.
SMALLEST_RANGE = 1e-6

# Values that stand for a histogram's bin where bins are finer than steps.
_POINTS = 4


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


def clip_limits(
    measured: InputStatistics,
    shifted: bool,
    rule: str,
    bits: int,
    share: np.ndarray | float = 1.0,
) -> np.ndarray:
    """(S,) float64: the |x| up to which each step's inputs are represented.

    Args:
        measured: statistics over S steps.
        shifted: quantize around the middle of [min, limit].
        rule: "absmax": the largest value seen; "p999": the 99.9 % point of |x|; "mse": the clip
            with the smallest expected squared error at this number of bits; "measured": a share of
            absmax; "learned": absmax, for inputs that nothing was learned of (`learned_ranges` has
            the others).
        share: (S,) of the rule "measured", see `clip_errors`.
    """
    absmax = np.maximum(measured.absmax.astype(np.float64), SMALLEST_RANGE)
    if rule in ("absmax", LEARNED):
        return absmax
    if rule == MEASURED:
        return np.maximum(absmax * share, SMALLEST_RANGE)
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


def positive_share(counts: np.ndarray, minimum: float, maximum: float) -> np.ndarray:
    """(NUM_BINS,) share of each bin's values that are positive; a histogram of |x| has no signs.

    Where both signs occur, half. Behind GELU negative values are the many that were cut off, and
    crowd near zero: there, positive values are taken to be 1.5 times as dense as between -minimum
    and twice that, where there are no others (GELU's slope is 0.5 at 0 and rises), but no more than
    half of the values.
    """
    low, widths = bin_edges()[:-1], np.diff(bin_edges())
    share = np.where(low < -minimum, 0.5, 1.0)
    if GELU_LOW <= minimum < 0 < maximum:
        positive = (low >= -minimum) & (low < -2 * minimum)
        density = counts[positive].sum() / max(widths[positive].sum(), SMALLEST_RANGE)
        expected = np.minimum(1.5 * density * widths / np.maximum(counts, 1), 0.5)
        share = np.where(low < -minimum, expected, 1.0)
    return share if maximum > 0 else np.zeros_like(share)


def _bin_values(minimum: float, maximum: float) -> np.ndarray:
    """(2, NUM_BINS, POINTS) values that stand for a bin: positive ones, and negative ones."""
    edges, widths = bin_edges()[:-1, None], np.diff(bin_edges())[:, None]
    magnitudes = edges + widths * (np.arange(_POINTS) + 0.5) / _POINTS
    return np.stack([np.minimum(magnitudes, max(maximum, 0)), np.maximum(-magnitudes, minimum)])


def predicted_error(
    measured: InputStatistics, half: np.ndarray, shift: np.ndarray, bits: int
) -> np.ndarray:
    """Mean squared error of an input's quantization, from its histogram and its extremes.

    Where bins are finer than steps, a bin's values are quantized as inference does it; where they
    are wider, values are spread over many steps and err by s^2 / 12 on average.

    Args:
        measured: statistics over R rows.
        half, shift: (R,) half ranges and shifts.

    Returns:
        (R,) float64, in squares of the input's unit.
    """
    widths = np.diff(bin_edges())[:, None] / _POINTS
    qmax = largest_code(bits)
    errors = []
    for row, (r, z) in enumerate(zip(half, shift, strict=True)):
        scale = r / qmax
        counts = measured.histogram[row]
        extremes = float(measured.minimum[row]), float(measured.maximum[row])
        values = _bin_values(*extremes)
        codes = np.rint((values - z) / scale)
        exact = (values - z - scale * np.clip(codes, -qmax - 1, qmax)) ** 2
        is_coarse = (widths >= scale) & (codes >= -qmax - 1) & (codes <= qmax)
        positive, negative = np.where(is_coarse, scale**2 / 12, exact).mean(axis=2)
        share = positive_share(counts, *extremes)
        by_bin = share * positive + (1 - share) * negative
        errors.append(float((counts * by_bin).sum() / max(counts.sum(), 1)))
    return np.array(errors)


def _interval(
    measured: InputStatistics, rule: str, bits: int, shift: str, share: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) half ranges and (R,) shifts of post-GELU inputs by one of the three fixed rules."""
    limit = clip_limits(measured, shift != "zero", rule, bits, share)
    if shift == "zero":
        return limit, np.zeros_like(limit)
    if shift == "gelu":
        # Lower than GELU's minimum where a recipe subtracts a shift of its own behind GELU.
        lowest = np.minimum(GELU_LOW, measured.minimum.astype(np.float64))
        scale = (limit - lowest) / (2**bits - 1)
        return scale * largest_code(bits), lowest + scale * 2 ** (bits - 1)
    low = np.minimum(measured.minimum.astype(np.float64), limit)
    return np.maximum((limit - low) / 2, SMALLEST_RANGE), (low + limit) / 2


def shift_errors(
    measured: InputStatistics, rule: str, bits: int, share: np.ndarray | float = 1.0
) -> dict[str, np.ndarray]:
    """Predicted error of post-GELU inputs with each fixed shift: name -> (R,) mean squares."""
    return {
        shift: predicted_error(measured, *_interval(measured, rule, bits, shift, share), bits)
        for shift in SHIFTS
        if shift != "error"
    }


def range_and_shift(
    measured: InputStatistics,
    post_gelu: bool,
    rule: str,
    bits: int,
    shift: str = "middle",
    share: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) half-width of the represented interval and (R,) its shift z, both float64.

    Args:
        measured: statistics over R rows.
        post_gelu: z is by `shift`, see the module; else the interval is [-limit, limit] and z = 0.
        rule, bits, share: see `clip_limits`.
    """
    if not post_gelu:
        limit = clip_limits(measured, False, rule, bits, share)
        return limit, np.zeros_like(limit)
    if shift != "error":
        return _interval(measured, rule, bits, shift, share)
    errors = shift_errors(measured, rule, bits, share)
    chosen = np.array(list(errors.values())).argmin(axis=0)
    intervals = np.array([_interval(measured, rule, bits, name, share) for name in errors])
    half, z = intervals[chosen, :, np.arange(len(chosen))].T
    return half, z
