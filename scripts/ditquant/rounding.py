"""Rounding: which of its two neighbouring codes a weight gets. Pure functions on arrays.

Round-to-nearest (RTN) minimises the error of each weight. AdaRound (Nagel et al. 2020,
arXiv 2004.10568) minimises the error of what the weights compute: the choice between rounding down
and up becomes a number h in [0, 1], is learned, and driven to 0 or 1 by a regulariser.

Throughout, `steps` = W / scale + zero (`grids.steps_of`) and codes lie in 0 .. levels - 1.
"""

from __future__ import annotations

from .backend import mx, sigmoid

# The stretch of the rectified sigmoid: h reaches 0 and 1 at finite alpha (Louizos et al. 2018).
ZETA, GAMMA = 1.1, -0.1


def nearest_codes(steps: mx.array, levels: int) -> mx.array:
    """Round-to-nearest codes of `steps`, float32 integers of the same shape."""
    return mx.clip(mx.round(steps), 0, levels - 1)


def rectified_sigmoid(alpha: mx.array) -> mx.array:
    """h(alpha) = clip((zeta - gamma) sigmoid(alpha) + gamma, 0, 1) (AdaRound, eq. 23)."""
    return mx.clip((ZETA - GAMMA) * sigmoid(alpha) + GAMMA, 0.0, 1.0)


def rectified_sigmoid_slope(h: mx.array) -> mx.array:
    """dh / dalpha, from h itself: (h - gamma)(zeta - h) / (zeta - gamma) inside (0, 1), else 0."""
    slope = (h - GAMMA) * (ZETA - h) / (ZETA - GAMMA)
    return mx.where((h > 0.0) & (h < 1.0), slope, 0.0)


def start_alpha(steps: mx.array) -> mx.array:
    """The alpha whose h is the fraction of `steps`, so that the soft weights start as W itself."""
    fraction = steps - mx.floor(steps)
    return -mx.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)


def soft_codes(steps: mx.array, h: mx.array, levels: int) -> mx.array:
    """clip(floor(steps) + h, 0, levels - 1) (AdaRound, eq. 22)."""
    return mx.clip(mx.floor(steps) + h, 0, levels - 1)


def soft_codes_slope(steps: mx.array, levels: int) -> mx.array:
    """d soft_codes / dh: 1 where both neighbours are codes, else 0 (the weight is clipped)."""
    floor = mx.floor(steps)
    return ((floor >= 0) & (floor < levels - 1)).astype(mx.float32)


def hard_codes(steps: mx.array, alpha: mx.array, levels: int) -> mx.array:
    """The codes after learning: up where h >= 1/2, that is alpha >= 0."""
    return mx.clip(mx.floor(steps) + (alpha >= 0), 0, levels - 1)


def integer_power(x: mx.array, exponent: int) -> mx.array:
    """x^exponent by repeated squaring, for a positive integer: `mx.power` costs ten products."""
    result = None
    while exponent:
        if exponent % 2:
            result = x if result is None else result * x
        exponent //= 2
        if exponent:
            x = x * x
    assert result is not None
    return result


def regularizer(h: mx.array, beta: int) -> mx.array:
    """1 - |2h - 1|^beta, element by element (AdaRound, eq. 24): 0 where h is 0 or 1, at most 1.

    A large beta leaves all but the h nearest to 0 and 1 alone; annealing it to 2 drives the rest.
    `beta` is even here, which makes it a plain power of 2h - 1.
    """
    return 1.0 - integer_power(2.0 * h - 1.0, beta)


def regularizer_slope(h: mx.array, beta: int) -> mx.array:
    """d regularizer / dh = -2 beta (2h - 1)^(beta - 1), for an even beta."""
    return -2.0 * beta * integer_power(2.0 * h - 1.0, beta - 1)


def is_binary(h: mx.array, tolerance: float = 0.01) -> mx.array:
    """True where hard rounding moves h by no more than `tolerance`."""
    return mx.minimum(h, 1.0 - h) <= tolerance
