"""Compiled steps of the rounding variables: the textbook's, to float32 rounding."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.weights.grids import SCALE_DTYPE, Grid, fit_scales, fractional_codes
from ditquant.weights.rounding import (
    ADAM_DECAY,
    ADAM_EPSILON,
    adam_step,
    advance,
    bits_of,
    soft_line,
    softening,
    stored_line,
)

SHAPE = (16, 128)


def normal(seed, scale=1.0):
    return scale * mx.random.normal(SHAPE, key=mx.random.key(seed))


def scalar(value):
    return mx.array(value, dtype=mx.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["group", "channel"])
def test_sixteen_bits_hold_the_line_exactly(kind, bits):
    weight = normal(bits, 0.05)
    scales = fit_scales(weight, Grid(kind, bits, 32))
    for array in soft_line(fractional_codes(weight, scales), scales):
        assert array.dtype == mx.float32
        assert mx.array_equal(array.astype(SCALE_DTYPE).astype(mx.float32), array)


def test_the_cpu_keeps_the_line_in_float32():
    weight = normal(0, 0.05)
    scales = fit_scales(weight, Grid("group", 4, 32))
    steps = fractional_codes(weight, scales)
    for one, other in zip(stored_line(steps, scales), soft_line(steps, scales), strict=True):
        assert mx.array_equal(one.astype(mx.float32), other)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_a_soft_weight_lies_on_its_line(dtype):
    alpha, low, rise = normal(0, 2.0), normal(1), mx.abs(normal(2, 0.1))
    for one, other in ((low, rise), (low.astype(mx.float16), rise.astype(mx.float16))):
        soft = softening(dtype)(alpha, one, other)
        h = mx.clip(1.2 * mx.sigmoid(alpha) - 0.1, 0.0, 1.0)
        expected = (one.astype(mx.float32) + other.astype(mx.float32) * h).astype(dtype)
        assert soft.dtype == dtype
        # The rational sigmoid is off by 4e-7; 16 bits may round the other way.
        unit = 1e-6 if dtype == mx.float32 else 2.0**-8
        assert mx.max(mx.abs(soft - expected)).item() < unit


def adam_by_hand(value, slopes, rate):
    """Adam (arXiv 1412.6980, algorithm 1) in float64."""
    mean, square = np.zeros(SHAPE), np.zeros(SHAPE)
    for step, slope in enumerate(slopes, start=1):
        mean = ADAM_DECAY[0] * mean + (1 - ADAM_DECAY[0]) * slope
        square = ADAM_DECAY[1] * square + (1 - ADAM_DECAY[1]) * slope**2
        root = np.sqrt(square / (1 - ADAM_DECAY[1] ** step)) + ADAM_EPSILON
        value = value - rate * mean / (1 - ADAM_DECAY[0] ** step) / root
    return value


def corrections(step):
    return [scalar(1 / (1 - keep**step)) for keep in ADAM_DECAY]


def test_adam_is_adam():
    value, slopes = normal(0), [normal(seed, 1e-6) for seed in range(1, 6)]
    expected = adam_by_hand(np.array(value, np.float64), [np.array(s) for s in slopes], 0.05)
    mean = square = mx.zeros(SHAPE)
    for step, slope in enumerate(slopes, start=1):
        value, mean, square = adam_step(
            value, mean, square, slope, scalar(0.05), *corrections(step)
        )
    assert np.abs(np.array(value) - expected).max() < 1e-5


@pytest.mark.parametrize("beta", [2, 20])
def test_alpha_moves_against_error_and_regulariser(beta):
    """The slope is that of slope * rise * h + penalty * regulariser, by automatic gradients."""
    alpha, weight_slope, rise = normal(0, 1.5), normal(1, 1e3), mx.abs(normal(2, 0.1))
    scale, penalty = 1e-3, 0.02

    def total(alpha):
        h = mx.clip(1.2 * mx.sigmoid(alpha) - 0.1, 0.0, 1.0)
        return mx.sum(scale * weight_slope * rise * h + penalty * (1 - (2 * h - 1) ** beta))

    slope = mx.grad(total)(alpha)
    expected = adam_by_hand(np.array(alpha, np.float64), [np.array(slope, np.float64)], 0.05)
    zeros = mx.zeros(SHAPE)
    moved, mean, square = advance(
        alpha, zeros, zeros,
        (weight_slope, rise, scalar(scale), scalar(penalty), bits_of(beta - 1)),
        (scalar(0.05), *corrections(1)),
    )  # fmt: skip
    assert mx.allclose(mean, 0.5 * slope, rtol=1e-4, atol=1e-6)
    assert mx.allclose(square, 1e-3 * slope * slope, rtol=1e-3, atol=1e-9)
    # The first step of Adam has the slope's sign and the rate's size, where the slope is not noise.
    seen = np.abs(np.array(slope)) > 1e-4
    assert seen.mean() > 0.8
    assert np.abs(np.array(moved) - expected)[seen].max() < 1e-4
