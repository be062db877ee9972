"""Shifts of post-GELU inputs and the error that a histogram predicts, against measured errors."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from ditquant.activations.intervals import (
    GELU_LOW,
    SHIFTS,
    predicted_error,
    range_and_shift,
    shift_errors,
)
from ditquant.activations.quant_params import largest_code
from ditquant.backend import mx, to_numpy
from support.activations import input_statistics, statistics
from support.schemes import fake_quantize, fake_quantize_dynamic, multi_tier, single_tier

FIXED = [shift for shift in SHIFTS if shift != "error"]


def gelu(x: np.ndarray) -> np.ndarray:
    return (x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2).astype(np.float32)


def after_gelu(*widths: float, outlier: float = 0.0) -> np.ndarray:
    """(steps, 2000, 8) values behind GELU; one value in 16,000 is `outlier` where it is given."""
    random = np.random.default_rng(1)
    values = gelu(np.array(widths)[:, None, None] * random.standard_normal((len(widths), 2000, 8)))
    if outlier:
        values[:, 0, 0] = outlier
    return values


def measured_error(values: np.ndarray, half: float, shift: float, bits: int) -> float:
    quantized = to_numpy(fake_quantize(mx.array(values), half / largest_code(bits), bits, shift))
    return float(((quantized - values.astype(np.float64)) ** 2).mean())


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("outlier", [0.0, 30.0])
@pytest.mark.parametrize("shift", FIXED)
def test_the_predicted_error_is_the_measured_one(bits, outlier, shift):
    values = after_gelu(0.3, 1.0, 4.0, outlier=outlier)
    measured = input_statistics(values)
    half, z = range_and_shift(measured, True, "absmax", bits, shift)
    found = [measured_error(values[row], half[row], z[row], bits) for row in range(3)]
    # Below 0.17 the signs are an estimate. That counts where steps are wide (30 / 63): a share of
    # the signs that is wrong by a quarter moves the error by as much.
    np.testing.assert_allclose(predicted_error(measured, half, z, bits), found, rtol=0.25)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_predicted_error_of_ordinary_inputs(bits):
    values = np.random.default_rng(0).standard_normal((2, 20_000, 8)).astype(np.float32)
    measured = input_statistics(values)
    for rule in ("absmax", "p999", "mse"):
        half, z = range_and_shift(measured, False, rule, bits)
        found = [measured_error(values[row], half[row], z[row], bits) for row in range(2)]
        np.testing.assert_allclose(predicted_error(measured, half, z, bits), found, rtol=0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_unsigned_codes_reach_from_below_gelu_to_the_limit(bits):
    measured = input_statistics(after_gelu(1.0, 3.0))
    half, z = range_and_shift(measured, True, "absmax", bits, "gelu")
    scale = half / largest_code(bits)
    np.testing.assert_allclose(z - scale * 2 ** (bits - 1), GELU_LOW, rtol=1e-9)
    np.testing.assert_allclose(z + half, measured.maximum, rtol=1e-6)


def test_a_shift_of_zero_is_the_symmetric_quantizer():
    measured = input_statistics(after_gelu(1.0, 3.0))
    half, z = range_and_shift(measured, True, "absmax", 8, "zero")
    np.testing.assert_array_equal(z, 0)
    np.testing.assert_allclose(half, measured.absmax)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_error_takes_the_shift_that_measures_best(bits):
    values = after_gelu(0.05, 0.3, 1.0, 4.0, outlier=8.0)
    measured = input_statistics(values)
    half, z = range_and_shift(measured, True, "absmax", bits, "error")
    for row in range(len(values)):
        found = measured_error(values[row], half[row], z[row], bits)
        by_rule = []
        for shift in FIXED:
            h, s = range_and_shift(measured, True, "absmax", bits, shift)
            by_rule.append(measured_error(values[row], h[row], s[row], bits))
        # Predictions are off by a quarter at most, one up and the other down.
        assert found <= min(by_rule) * 1.25 / 0.75


def test_rows_choose_for_themselves_and_the_file_keeps_every_number():
    # Few bits over a wide range: most values are near zero, and zero should be a code. Many bits:
    # resolution decides, and half of it would be lost.
    values = np.concatenate([after_gelu(0.05, outlier=8.0), after_gelu(4.0)])
    made = statistics({"fc2": values, "fc1": values}, post_gelu=("fc2",))
    document = single_tier(made, 4, "step", "absmax", shift="error")
    layer = document["layers"]["fc2"]
    assert document["configuration"]["shift"] == "error"
    assert layer["shift_rules"][0] == "zero"
    assert layer["shifts"][0] == 0
    assert layer["shift_rules"][1] in ("middle", "gelu")
    expected = shift_errors(made.of("fc2"), "absmax", 4)
    assert set(layer["shift_errors"]) == set(FIXED)
    for name, errors in layer["shift_errors"].items():
        np.testing.assert_allclose(errors, expected[name], rtol=1e-5)
    assert "shift_rules" not in document["layers"]["fc1"]


def test_tiers_report_the_shift_at_the_bits_of_each_row():
    values = after_gelu(0.1, 1.0, 6.0)
    made = statistics({"fc2": values}, post_gelu=("fc2",))
    limits = {"linear": [1.0, 2.0], "post_gelu": [0.5, 3.0]}
    document = multi_tier(made, "step", "absmax", limits, shift="error")
    layer = document["layers"]["fc2"]
    assert layer["bits"] == [4, 6, 8]
    for row, bits in enumerate(layer["bits"]):
        expected = shift_errors(made.of("fc2"), "absmax", bits)
        assert layer["shift_rules"][row] == min(FIXED, key=lambda name: expected[name][row])


@pytest.mark.parametrize("granularity", ["dynamic-tensor", "dynamic-token"])
def test_unsigned_dynamic_ranges_halve_the_step_of_signed_ones(granularity):
    values = after_gelu(3.0)
    errors = {}
    for unsigned, shift in ((False, 0.0), (True, GELU_LOW)):
        found = to_numpy(fake_quantize_dynamic(mx.array(values), granularity, 8, shift, unsigned))
        errors[unsigned] = float(((found - values.astype(np.float64)) ** 2).mean())
    # Steps of (m + 0.17) / 255 instead of m / 127; the square of the ratio at the smallest maximum
    # of a token that matters here, 1, is 0.34, and 0.25 at large ones.
    assert errors[True] < 0.4 * errors[False]
