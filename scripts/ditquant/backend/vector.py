"""Functions that MLX's CPU backend computes element by element, in a form that vectorises.

MLX's `exp`, `erf` and powers cost 10 to 30 ns an element on the Linux CPU, because they are scalar
calls. The rational forms below are only products, sums and one quotient: 1 to 5 ns.
"""

from __future__ import annotations

import math

import mlx.core as mx

# erf(x) = x P(x^2) / Q(x^2) on |x| <= 4, highest power first: XLA's coefficients, to 4e-7.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
# exp(-u) / (2 pi)^(1/32) on 0 <= u <= 1, highest power first: Chebyshev's interpolation, to 2e-8.
_EXP = (
    8.016200966462098e-04, -7.227095326365022e-03, 3.892241870095603e-02, -1.5722104424580052e-01,
    4.720687450797288e-01, -9.441830672007083e-01, 9.441845122145125e-01,
)  # fmt: skip


def polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """Horner's rule, highest power first."""
    first, second, *rest = coefficients
    value = first * x + second
    for coefficient in rest:
        value = value * x + coefficient
    return value


def normal_cdf(x: mx.array) -> mx.array:
    """Phi(x) = (1 + erf(x / sqrt(2))) / 2 in float32, to 2e-7."""
    x = mx.clip(x * math.sqrt(0.5), -4.0, 4.0)
    square = x * x
    return 0.5 + 0.5 * x * (polynomial(square, _ERF_P) / polynomial(square, _ERF_Q))


def normal_density(x: mx.array) -> mx.array:
    """exp(-x^2 / 2) / sqrt(2 pi) in float32; beyond |x| = 5.7 the 5e-8 that it is there."""
    # exp(-t) = exp(-t / 16)^16, by four squarings.
    value = polynomial(mx.minimum(x * x * (1 / 32), 1.0), _EXP)
    for _ in range(4):
        value = value * value
    return value
