"""Learned steps: values on the grid, and LSQ's gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.weights.lsq import ActivationQuantizer, dropped, quantize, range_quantizer

# The codes 0 .. 15 stand for -0.5 .. 1.0.
QUANTIZER = ActivationQuantizer(mx.array(0.1), 5.0, 4)


def inputs(count=4000, seed=0):
    """Values inside the grid's range and on both sides of it."""
    return mx.random.uniform(-1.0, 1.5, (count,), key=mx.random.key(seed))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_a_range_and_zero_are_covered(low, high):
    quantizer = range_quantizer(low, high, 8)
    step = quantizer.step_size.item()
    first, last = -quantizer.zero * step, (255 - quantizer.zero) * step
    # The zero point is a whole code, which moves an end by half a step at most.
    assert first <= min(low, 0.0) + step / 2 + 1e-7
    assert last >= max(high, 0.0) - step / 2 - 1e-7
    assert quantizer.zero == round(quantizer.zero)
    assert 0 <= quantizer.zero <= 255


def test_values_are_the_nearest_of_the_grid():
    x = inputs()
    values = np.array(quantize(x, QUANTIZER, QUANTIZER.step_size), np.float64)
    grid = 0.1 * (np.arange(16) - 5)
    nearest = grid[np.abs(np.array(x)[:, None] - grid).argmin(axis=1)]
    # A value half way between two may go either way.
    x = np.array(x, np.float64)
    assert np.max(np.abs(values - x) - np.abs(nearest - x)) < 1e-6
    assert np.mean(np.abs(values - nearest) > 1e-6) < 1e-3
    assert values.min() == pytest.approx(-0.5, abs=1e-6)
    assert values.max() == pytest.approx(1.0, abs=1e-6)


def test_the_dtype_is_kept():
    assert quantize(inputs().astype(mx.float16), QUANTIZER, QUANTIZER.step_size).dtype == mx.float16


def test_gradients_pass_straight_through_inside_the_range():
    x = inputs()
    slope = mx.grad(lambda x: quantize(x, QUANTIZER, QUANTIZER.step_size).sum())(x)
    codes = x / 0.1 + 5.0
    inside = (codes > 1e-4) & (codes < 15 - 1e-4)
    outside = (codes < -1e-4) | (codes > 15 + 1e-4)
    assert mx.allclose(mx.where(inside, slope, 1.0), mx.array(1.0), atol=1e-6)
    assert mx.all(mx.where(outside, slope, 0.0) == 0.0)


def test_the_gradient_of_the_step_is_lsqs():
    """Sum of slope * (round(c) - c) inside and of slope * (c_clipped - z) outside, times g."""
    x, cotangent = inputs(), mx.random.normal((4000,), key=mx.random.key(1))
    learned = mx.grad(lambda step: (quantize(x, QUANTIZER, step) * cotangent).sum())(
        QUANTIZER.step_size
    )
    codes = np.array(x, np.float64) / np.float64(np.float32(0.1)) + 5.0
    inside = (codes >= 0) & (codes <= 15)
    by_element = np.where(inside, np.round(codes) - codes, np.clip(codes, 0, 15) - 5.0)
    expected = (by_element * np.array(cotangent, np.float64)).sum() / math.sqrt(4000 * 15)
    # A sum of 4,000 float32 terms of size up to 10, each off by its own rounding, times g.
    assert learned.item() == pytest.approx(expected, abs=4000 * 10 * 2**-24 / math.sqrt(4000 * 15))


@pytest.mark.parametrize("value", [-3.0, 7.0])
def test_outside_the_range_the_gradient_is_the_finite_difference(value):
    """There the output is a straight line in the step, and g is all that is between the two."""
    x = mx.full((10,), value)

    def total(step):
        return quantize(x, QUANTIZER, step).sum()

    slope = mx.grad(total)(QUANTIZER.step_size).item() * math.sqrt(10 * 15)
    difference = (total(mx.array(0.125)) - total(mx.array(0.0625))).item() / 0.0625
    assert slope == pytest.approx(difference, rel=1e-5)


def test_a_share_of_the_elements_is_left_alone():
    x = inputs(100_000)
    rounded = x + 1.0
    assert dropped(x, rounded, 0.0, mx.random.key(0)) is rounded
    mixed = dropped(x, rounded, 0.25, mx.random.key(0))
    own = mixed == x
    assert mx.all(own | (mixed == rounded))
    # Five standard deviations of a share of 100,000 draws.
    assert mx.mean(own).item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1e5))
    assert mx.array_equal(mixed, dropped(x, rounded, 0.25, mx.random.key(0)))
    assert not mx.array_equal(mixed, dropped(x, rounded, 0.25, mx.random.key(1)))
