"""What an iteration of learned rounding does to each weight, in few passes over memory.

A block of SD3-medium has 57 million weights, and each has an alpha, two moments of Adam and a
straight line to its soft weight. Operation by operation an iteration would read and write them
dozens of times; compiled, it reads them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backend import compiled, is_accelerated, mx
from .grids import SCALE_DTYPE, Scales
from .rounding import (
    Bits,
    bounded,
    inner_sigmoid,
    inner_sigmoid_slope,
    regularizer_slope,
    soft_line,
)

# The usual 0.9 for the first moment carries alpha past the point where it should settle between 0
# and 1: on one block of the demo model 0.5 left 0.54 of RTN's error on unseen rows, 0.9 left 0.62.
ADAM_DECAY = (0.5, 0.999)
ADAM_EPSILON = 1e-12


def _apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled: inside `_together` a part of one kernel, alone a kernel of its own.

    On the CPU a clip, a choice or a root keeps the compiler from vectorising the loop that it
    stands in together with other arithmetic, so each of them is a loop of its own there.
    """
    return compiled(function)


def _together(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled as one on an accelerator, where passes over memory are what costs."""
    return compiled(function) if is_accelerated() else function


_bounded = _apart(bounded)
_h = _apart(inner_sigmoid)
_scaled_root = _apart(lambda square, scale: mx.sqrt(square * scale))
_where_same = _apart(lambda one, other, value: mx.where(one == other, value, 0.0))


def softening(dtype: mx.Dtype) -> Callable[..., mx.array]:
    """(alpha, low, rise) -> the soft weight in `dtype`, in one pass over the weights."""

    @_apart
    def on_line(inside: mx.array, low: mx.array, rise: mx.array) -> mx.array:
        return (low + rise * inner_sigmoid(inside)).astype(dtype)

    def soften(alpha: mx.array, low: mx.array, rise: mx.array) -> mx.array:
        return on_line(_bounded(alpha), low, rise)

    return _together(soften)


@_apart
def _moments(mean: mx.array, square: mx.array, slope: mx.array) -> tuple[mx.array, mx.array]:
    keep_mean, keep_square = ADAM_DECAY
    mean = keep_mean * mean + (1 - keep_mean) * slope
    return mean, keep_square * square + (1 - keep_square) * slope * slope


@_apart
def _moved(value: mx.array, mean: mx.array, root: mx.array, rate: mx.array) -> mx.array:
    return value - rate * mean / (root + ADAM_EPSILON)


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
    mean, square = _moments(mean, square, slope)
    root = _scaled_root(square, square_correction)
    return _moved(value, mean, root, rate * mean_correction), mean, square


@_apart
def _penalty_slope(h: mx.array, penalty: mx.array, beta_bits: Bits) -> mx.array:
    return penalty * regularizer_slope(h, beta_bits)


@_apart
def _inner_slope(
    h: mx.array,
    weight_slope: mx.array,
    rise: mx.array,
    error_scale: mx.array,
    penalty_slope: mx.array,
) -> mx.array:
    error = weight_slope.astype(mx.float32) * error_scale * rise
    return (error + penalty_slope) * inner_sigmoid_slope(h)


def alpha_slope(
    alpha: mx.array,
    weight_slope: mx.array,
    rise: mx.array,
    error_scale: mx.array,
    penalty: mx.array,
    beta_bits: Bits,
) -> mx.array:
    """d (error + regulariser) / d alpha.

    Args:
        weight_slope, rise: d error / d soft weight times 1 / `error_scale`, and d soft weight / dh.
        penalty: lambda / number of weights; 0 during the warm-up.
        beta_bits: see `rounding.bits_of`.
    """
    inside = _bounded(alpha)
    h = _h(inside)
    push = _penalty_slope(h, penalty, beta_bits)
    slope = _inner_slope(h, weight_slope, rise, error_scale, push)
    # Beyond its bounds h is 0 or 1 and does not change.
    return _where_same(alpha, inside, slope)


@_together
def advance(
    alpha: mx.array,
    mean: mx.array,
    square: mx.array,
    slopes: Sequence[mx.array],
    rates: Sequence[mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    """One step of alpha: it and its moments afterwards.

    Args:
        slopes: further arguments of `alpha_slope`.
        rates: further arguments of `adam_step`.
    """
    return adam_step(alpha, mean, square, alpha_slope(alpha, *slopes), *rates)


@_together
def advance_where(
    is_taken: mx.array,
    alpha: mx.array,
    mean: mx.array,
    square: mx.array,
    slopes: Sequence[mx.array],
    rates: Sequence[mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    """`advance` where `is_taken`, a scalar, is not 0; else what there was."""
    before = (alpha, mean, square)
    after = advance(*before, slopes, rates)
    one, two, three = (mx.where(is_taken > 0, *pair) for pair in zip(after, before, strict=True))
    return one, two, three


def stored_line(steps: mx.array, scales: Scales) -> tuple[mx.array, mx.array]:
    """`soft_line`, on an accelerator in 16 bits, which hold it exactly for up to 6 (`grids`)."""
    low, rise = soft_line(steps, scales)
    if is_accelerated() and scales.bits <= 6:
        return low.astype(SCALE_DTYPE), rise.astype(SCALE_DTYPE)
    return low, rise
