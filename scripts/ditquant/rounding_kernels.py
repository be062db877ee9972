"""What an iteration of learned rounding does to each weight, in few passes over memory.

A block of SD3-medium has 57 million weights, and each has an alpha, two moments of Adam and a
straight line to its soft weight. Operation by operation an iteration would read and write them
dozens of times; compiled, it reads them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .backend import compiled, is_accelerated, mx
from .grids import SCALE_DTYPE, Scales
from .rounding import (
    rectified_sigmoid,
    rectified_sigmoid_slope,
    regularizer_slope,
    soft_line,
)

# The usual 0.9 for the first moment carries alpha past the point where it should settle between 0
# and 1: on one block of the demo model 0.5 left 0.54 of RTN's error on unseen rows, 0.9 left 0.62.
ADAM_DECAY = (0.5, 0.999)
ADAM_EPSILON = 1e-12


def softening(dtype: mx.Dtype) -> Callable[..., mx.array]:
    """(alpha, low, rise) -> the soft weight in `dtype`, in one pass over the weights."""

    def soften(alpha: mx.array, low: mx.array, rise: mx.array) -> mx.array:
        return (low + rise * rectified_sigmoid(alpha)).astype(dtype)

    return compiled(soften)


def adam_step(
    value: mx.array,
    mean: mx.array,
    square: mx.array,
    slope: mx.array,
    rate: mx.array,
    mean_correction: mx.array,
    square_correction: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """One Adam step: the value and its moments afterwards.

    Args:
        rate, mean_correction, square_correction: the learning rate and 1 / (1 - decay^t); scalars
            as arrays, since a number would recompile.
    """
    keep_mean, keep_square = ADAM_DECAY
    mean = keep_mean * mean + (1 - keep_mean) * slope
    square = keep_square * square + (1 - keep_square) * slope * slope
    root = mx.sqrt(square * square_correction) + ADAM_EPSILON
    return value - rate * mean * mean_correction / root, mean, square


def alpha_slope(
    alpha: mx.array,
    weight_slope: mx.array,
    rise: mx.array,
    error_scale: mx.array,
    penalty: mx.array,
    beta_bits: mx.array,
) -> mx.array:
    """d (error + regulariser) / d alpha.

    Args:
        weight_slope, rise: d error / d soft weight times 1 / `error_scale`, and d soft weight / dh.
        penalty: lambda / number of weights; 0 during the warm-up.
        beta_bits: see `rounding.bits_of`.
    """
    h = rectified_sigmoid(alpha)
    error = weight_slope.astype(mx.float32) * error_scale * rise
    return (error + penalty * regularizer_slope(h, beta_bits)) * rectified_sigmoid_slope(h)


def advancing() -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """(alpha and its moments, arguments of `alpha_slope`, of `adam_step`) -> alpha, moments.

    One kernel on an accelerator. On the CPU a root keeps the compiler from vectorising the loop
    that it stands in, so Adam's loop is one of its own.
    """
    slope_of, adam = alpha_slope, adam_step
    if not is_accelerated():
        slope_of, adam = compiled(slope_of), compiled(adam)

    def advance(
        alpha: mx.array,
        mean: mx.array,
        square: mx.array,
        slopes: Sequence[mx.array],
        rates: Sequence[mx.array],
    ) -> tuple[mx.array, mx.array, mx.array]:
        return adam(alpha, mean, square, slope_of(alpha, *slopes), *rates)

    return compiled(advance) if is_accelerated() else advance


def stored_line(steps: mx.array, scales: Scales) -> tuple[mx.array, mx.array]:
    """`soft_line`, on an accelerator in 16 bits, which hold it exactly for up to 6 (`grids`)."""
    low, rise = soft_line(steps, scales)
    if is_accelerated() and scales.bits <= 6:
        return low.astype(SCALE_DTYPE), rise.astype(SCALE_DTYPE)
    return low, rise
