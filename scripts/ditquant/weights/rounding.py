"""Rounding: which of its two neighbouring codes a weight gets. Pure functions on arrays.

Round-to-nearest (RTN) minimises the error of each weight. AdaRound (Nagel et al. 2020,
arXiv 2004.10568) minimises the error of what the weights compute: the choice between rounding down
and up becomes a number h in [0, 1], is learned, and driven to 0 or 1 by a regulariser.

Throughout, `fractional` = W / scale + zero (`grids.fractional_codes`), and codes lie in
0 .. 2^bits - 1.

A block of SD3-medium has 57 million weights, and each has an alpha, two moments of Adam and a
straight line to its soft weight. Operation by operation an iteration would read and write them
dozens of times; compiled, it reads them twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import compiled, is_accelerated, mx, polynomial
from .grids import SCALE_DTYPE, Scales, values_of

# `bits_of` a number, as arrays inside compiled functions.
Bits = Sequence[float] | Sequence[mx.array]

# The stretch of the rectified sigmoid: h reaches 0 and 1 at finite alpha (Louizos et al. 2018).
ZETA, GAMMA = 1.1, -0.1
# The alpha at which h reaches 1; at its negative it reaches 0.
_LIMIT = math.log(-ZETA / GAMMA)
# (h - 1/2) / alpha = P(alpha^2) / Q(alpha^2) up to there, highest power first: a minimax fit, to
# 3e-10. A CPU computes it in a twentieth of the time that `mx.sigmoid` takes.
_H_P = (1.9101441803832233e-05, 8.287179304423853e-03, 2.999999987974893e-01)
_H_Q = (9.767949842466256e-04, 1.1095724765004879e-01, 1.0)

# The usual 0.9 for the first moment carries alpha past the point where it should settle between 0
# and 1: on one block of the demo model 0.5 left 0.54 of RTN's error on unseen rows, 0.9 left 0.62.
ADAM_DECAY = (0.5, 0.999)
ADAM_EPSILON = 1e-12


def bounded(alpha: mx.array) -> mx.array:
    """alpha where h(alpha) lies in (0, 1), else the nearest such alpha."""
    return mx.clip(alpha, -_LIMIT, _LIMIT)


def inner_sigmoid(alpha: mx.array) -> mx.array:
    """h(alpha) = clip((zeta - gamma) sigmoid(alpha) + gamma, 0, 1) (AdaRound, eq. 23).

    In float32, to 2e-7: 0 and 1 too.

    Args:
        alpha: `bounded`.
    """
    if is_accelerated():
        return (ZETA - GAMMA) * mx.sigmoid(alpha) + GAMMA
    square = alpha * alpha
    return 0.5 + alpha * (polynomial(square, _H_P) / polynomial(square, _H_Q))


def inner_sigmoid_slope(h: mx.array) -> mx.array:
    """dh / dalpha where h lies in (0, 1), from h itself: (h - gamma)(zeta - h) / (zeta - gamma)."""
    return (h - GAMMA) * (ZETA - h) * (1.0 / (ZETA - GAMMA))


def start_alpha(fractional: mx.array) -> mx.array:
    """The alpha whose h is the fraction of a code, so that the soft weights start as W itself."""
    fraction = fractional - mx.floor(fractional)
    return -mx.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)


def soft_line(fractional: mx.array, scales: Scales) -> tuple[mx.array, mx.array]:
    """(low, rise): the soft weight is low + rise h, a straight line in h.

    scale (clip(floor(fractional) + h, 0, 2^bits - 1) - zero) (AdaRound, eq. 22). Where only one of
    the two neighbours is a code the weight is clipped to it and `rise` is 0.

    Returns:
        Two (outputs, inputs) float32 arrays.
    """
    last = 2**scales.bits - 1
    floor = mx.floor(fractional)
    free = (floor >= 0) & (floor < last)
    low = values_of(mx.clip(floor, 0, last), scales)
    scale = mx.repeat(scales.scales.astype(mx.float32), scales.group_size, axis=1)
    return low, mx.where(free, scale, 0.0)


def hard_codes(fractional: mx.array, alpha: mx.array, bits: int) -> mx.array:
    """The codes after learning: up where h >= 1/2, that is alpha >= 0."""
    return mx.clip(mx.floor(fractional) + (alpha >= 0), 0, 2**bits - 1)


def bits_of(exponent: int) -> list[float]:
    """The lowest five bits of a whole number, lowest first: for `power`."""
    return [float(exponent >> bit & 1) for bit in range(5)]


def power(x: mx.array, bits: Bits) -> mx.array:
    """x^n by repeated squaring, for a whole n from 0 to 31 given as `bits_of(n)`.

    The bits may be arrays (), so that a compiled function serves every n; `mx.power` costs ten
    products. The factor x or 1 is x b + (1 - b), which the CPU's compiler vectorises, unlike a
    choice.
    """
    result = x * bits[0] + (1.0 - bits[0])
    for bit in range(1, 5):
        x = x * x
        result = result * (x * bits[bit] + (1.0 - bits[bit]))
    return result


def regularizer_slope(h: mx.array, bits: Bits) -> mx.array:
    """d / dh of the regulariser 1 - |2h - 1|^beta (AdaRound, eq. 24), for an even beta.

    The regulariser is 0 where h is 0 or 1. A large beta leaves all but the h nearest to them alone;
    annealing it to 2 drives the rest.

    Args:
        bits: `bits_of(beta - 1)`.
    """
    beta = 1.0 + sum(2.0**bit * bits[bit] for bit in range(5))
    return -2.0 * beta * power(2.0 * h - 1.0, bits)


def is_binary(alpha: mx.array, tolerance: float = 0.01) -> mx.array:
    """True where hard rounding moves h(alpha) by no more than `tolerance`."""
    return mx.abs(alpha) >= math.log((ZETA - GAMMA) / (tolerance - GAMMA) - 1.0)


# ----------------------------------------------------------------------------------- kernels


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled as one on an accelerator, where passes over memory are what costs.

    Functions that are `compiled` become parts of one kernel inside, and are kernels of their own on
    a CPU: there a clip, a choice or a root keeps the compiler from vectorising the loop that it
    stands in together with other arithmetic.
    """
    return compiled(function) if is_accelerated() else function


_bounded = compiled(bounded)
_h = compiled(inner_sigmoid)
_scaled_root = compiled(lambda square, scale: mx.sqrt(square * scale))
_where_same = compiled(lambda one, other, value: mx.where(one == other, value, 0.0))


def softening(dtype: mx.Dtype) -> Callable[..., mx.array]:
    """(alpha, low, rise) -> the soft weight in `dtype`, in one pass over the weights."""

    @compiled
    def on_line(inside: mx.array, low: mx.array, rise: mx.array) -> mx.array:
        return (low + rise * inner_sigmoid(inside)).astype(dtype)

    def soften(alpha: mx.array, low: mx.array, rise: mx.array) -> mx.array:
        return on_line(_bounded(alpha), low, rise)

    return _fused(soften)


@compiled
def _moments(mean: mx.array, square: mx.array, slope: mx.array) -> tuple[mx.array, mx.array]:
    keep_mean, keep_square = ADAM_DECAY
    mean = keep_mean * mean + (1 - keep_mean) * slope
    return mean, keep_square * square + (1 - keep_square) * slope * slope


@compiled
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


@compiled
def _penalty_slope(h: mx.array, penalty: mx.array, beta_bits: Bits) -> mx.array:
    return penalty * regularizer_slope(h, beta_bits)


@compiled
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
        beta_bits: see `bits_of`.
    """
    inside = _bounded(alpha)
    h = _h(inside)
    push = _penalty_slope(h, penalty, beta_bits)
    slope = _inner_slope(h, weight_slope, rise, error_scale, push)
    # Beyond its bounds h is 0 or 1 and does not change.
    return _where_same(alpha, inside, slope)


@_fused
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


@_fused
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


def stored_line(fractional: mx.array, scales: Scales) -> tuple[mx.array, mx.array]:
    """`soft_line`, on an accelerator in 16 bits, which hold it exactly for up to 6 (`grids`)."""
    low, rise = soft_line(fractional, scales)
    if is_accelerated() and scales.bits <= 6:
        return low.astype(SCALE_DTYPE), rise.astype(SCALE_DTYPE)
    return low, rise
