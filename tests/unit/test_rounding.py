"""The AdaRound relaxation: its equations, and the closed-form slopes against differentiation."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.weights.grids import Scales, nearest_codes, values_of
from ditquant.weights.rounding import (
    bits_of,
    bounded,
    hard_codes,
    inner_sigmoid,
    inner_sigmoid_slope,
    is_binary,
    power,
    regularizer_slope,
    soft_line,
    start_alpha,
)

CODES = mx.random.uniform(-1.5, 16.5, (8, 256), key=mx.random.key(0))
SCALES = Scales(mx.full((8, 8), 0.25, mx.float16), mx.full((8, 8), 7.0), 4, 32)


def h_of(alpha):
    return inner_sigmoid(bounded(alpha))


def test_h_is_the_rectified_sigmoid():
    alpha = mx.linspace(-40.0, 40.0, 100001)
    exact = 1.2 / (1.0 + np.exp(-np.array(alpha, np.float64))) - 0.1
    # A rational minimax fit in float32 arithmetic: some units in the last place of 1.
    assert np.abs(np.array(h_of(alpha)) - np.clip(exact, 0, 1)).max() < 4 * 2.0**-24


def test_learning_starts_at_the_weights_themselves():
    low, rise = soft_line(CODES, SCALES)
    soft = low + rise * h_of(start_alpha(CODES))
    # h errs by some ulps of the sigmoid and of the logarithm before it
    assert mx.max(mx.abs(soft - values_of(mx.clip(CODES, 0, 15), SCALES))).item() < 1e-6


def test_hard_codes_of_the_start_are_the_nearest():
    fraction = CODES - mx.floor(CODES)
    clear = mx.abs(fraction - 0.5) > 1e-5
    same = hard_codes(CODES, start_alpha(CODES), 4) == nearest_codes(CODES, 4)
    assert mx.all(same | ~clear).item()


def test_hard_codes_round_up_from_alpha_zero():
    codes = mx.array([3.2, 3.2, 15.7, -0.4])
    alpha = mx.array([0.0, -0.1, 5.0, 5.0])
    assert hard_codes(codes, alpha, 4).tolist() == [4, 3, 15, 0]


def test_h_reaches_both_ends():
    h = h_of(mx.array([-2.5, 0.0, 2.5]))
    assert h.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    # The two alphas at which h is 0.01 and 0.99 are +- log(98 / 11 + 1).
    alpha = mx.array([-9.0, -2.3, -2.28, 0.0, 2.28, 2.3, 9.0])
    h = h_of(alpha)
    assert is_binary(alpha).tolist() == [True, True, False, False, False, True, True]
    assert is_binary(alpha).tolist() == (mx.minimum(h, 1.0 - h) <= 0.01).tolist()


@pytest.mark.parametrize("beta", [2, 6, 20])
def test_regularizer_slope(beta):
    h = mx.linspace(0.0, 1.0, 1001)
    by_power = mx.grad(lambda h: mx.sum(1.0 - mx.power(mx.abs(2.0 * h - 1.0), float(beta))))(h)
    assert mx.allclose(regularizer_slope(h, bits_of(beta - 1)), by_power, rtol=1e-4, atol=1e-5)


def test_slope_of_h():
    # off the two kinks at |alpha| = log(11)
    alpha = mx.linspace(-6.0, 6.0, 2000)
    expected = mx.grad(lambda a: mx.sum(mx.clip(1.2 * mx.sigmoid(a) - 0.1, 0.0, 1.0)))(alpha)
    inside = bounded(alpha)
    slope = mx.where(inside == alpha, inner_sigmoid_slope(inner_sigmoid(inside)), 0.0)
    smooth = mx.abs(mx.abs(alpha) - 2.3979) > 1e-3
    assert mx.allclose(mx.where(smooth, slope, 0), mx.where(smooth, expected, 0), atol=2e-6)


@pytest.mark.parametrize("h", [0.0, 0.4, 1.0])
def test_soft_weights_are_a_line_in_h(h):
    """AdaRound's eq. 22, clipped where only one neighbour is a code."""
    low, rise = soft_line(CODES, SCALES)
    expected = values_of(mx.clip(mx.floor(CODES) + h, 0, 15), SCALES)
    # One multiplication and one sum of numbers up to 16 steps of 0.25.
    assert mx.max(mx.abs(low + rise * h - expected)).item() <= 8 * 2.0**-22


def test_a_clipped_weight_does_not_move():
    steps = mx.array([[-1.2, -0.4, 15.0, 15.7] * 8])
    _, rise = soft_line(steps, Scales(SCALES.scales[:1, :1], SCALES.zeros[:1, :1], 4, 32))
    assert mx.all(rise == 0).item()


@pytest.mark.parametrize("exponent", [0, 1, 5, 19, 31])
def test_power_by_bits(exponent):
    x = mx.linspace(-1.2, 1.2, 101)
    expected = mx.array([value**exponent for value in x.tolist()])
    # Five squarings, each of which doubles a relative error of half an ulp.
    assert mx.allclose(power(x, bits_of(exponent)), expected, rtol=64 * 2.0**-23, atol=1e-30)
