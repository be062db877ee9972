"""Metrics have the values that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant import metrics


def constant(value: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_psnr_does_not_wrap_around():
    # A difference of 28 levels in the direction that wraps in uint8 (10 - 38 = 228).
    assert metrics.psnr(constant(10), constant(38)) == pytest.approx(19.187, abs=1e-3)
    assert metrics.psnr(constant(10), constant(38)) == metrics.psnr(constant(38), constant(10))


def test_psnr_of_one_level_is_48_db_and_of_equal_pictures_infinite():
    assert metrics.psnr(constant(7), constant(8)) == pytest.approx(20 * np.log10(255))
    assert metrics.psnr(noise(0), noise(0)) == float("inf")


def test_max_absolute_difference_does_not_wrap_around():
    changed = constant(0)
    changed[3, 4, 1] = 250
    assert metrics.max_absolute_difference(constant(0), changed) == 250


def test_ssim_of_equal_pictures_is_one():
    assert metrics.ssim(noise(1), noise(1)) == pytest.approx(1, abs=1e-12)


def test_ssim_of_shifted_constants_is_the_luminance_term():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 140 + c1) / (100**2 + 140**2 + c1)
    assert metrics.ssim(constant(100), constant(140)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_independent_noise_is_near_zero_and_symmetric():
    value = metrics.ssim(noise(2), noise(3))
    assert abs(value) < 0.1
    assert value == pytest.approx(metrics.ssim(noise(3), noise(2)), abs=1e-12)


def test_ssim_equals_the_definition_at_one_window():
    x, y = noise(4, size=11), noise(5, size=11)
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for channel in range(3):
        a, b = x[..., channel].astype(float), y[..., channel].astype(float)
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        c1, c2 = 2.55**2, 7.65**2
        values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert metrics.ssim(x, y) == pytest.approx(np.mean(values), rel=1e-9)


def test_ssim_refuses_a_picture_below_the_window():
    with pytest.raises(ValueError, match="smaller than the SSIM window"):
        metrics.ssim(constant(0, size=10), constant(0, size=10))


def test_relative_error():
    reference = np.array([3.0, 4.0], dtype=np.float32)
    assert metrics.relative_error(reference * 1.1, reference) == pytest.approx(0.01, rel=1e-6)


def test_relative_error_computes_in_float64():
    reference = np.full(4, 60000, dtype=np.float16)  # its square overflows in float16
    assert metrics.relative_error(np.zeros(4, dtype=np.float16), reference) == 1


@pytest.mark.parametrize(
    ("value", "reference", "message"),
    [(np.ones(2), np.ones(3), "shapes differ"), (np.ones(2), np.zeros(2), "zeros")],
)
def test_relative_error_refuses_what_has_no_value(value, reference, message):
    with pytest.raises(ValueError, match=message):
        metrics.relative_error(value, reference)


def test_bootstrap_interval_holds_the_normal_theory_value():
    values = np.random.default_rng(0).normal(10, 2, size=400)
    low, high = metrics.bootstrap_interval(values, np.mean)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    # 2000 resamples place an end within a tenth of the half-width (a few standard errors).
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_the_same_every_time_and_survives_infinite_values():
    values = np.array([30.0, float("inf"), 31.0, float("inf")])
    first = metrics.bootstrap_interval(values, np.median)
    assert first == metrics.bootstrap_interval(values, np.median)
    assert first == (30.0, float("inf"))


def test_paired_ratio_knows_that_a_constant_factor_is_certain():
    baseline = np.random.default_rng(1).lognormal(size=16)
    ratio, low, high = metrics.paired_ratio(0.5 * baseline, baseline)
    assert (ratio, low, high) == pytest.approx((0.5, 0.5, 0.5))
    shuffled = 0.5 * np.random.default_rng(2).permutation(baseline)
    _, wide_low, wide_high = metrics.paired_ratio(shuffled, baseline)
    assert wide_low < 0.5 < wide_high
