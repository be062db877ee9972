"""Scales from statistics: known values, all codes used, tiers by the threshold rule."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.intervals import clip_limits, range_and_shift
from ditquant.activations.quant_params import largest_code
from ditquant.activations.tiers import tier_of
from ditquant.backend import mx, to_numpy
from support.activations import input_statistics, statistics
from support.schemes import fake_quantize, multi_tier, single_tier


def values_with_range(*ranges: float) -> np.ndarray:
    """(S, 500, 8) values, symmetric, whose absmax at each step is exact."""
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, (len(ranges), 500, 8)) * np.array(ranges)[:, None, None] * 0.99
    values[:, 0, 0], values[:, 1, 1] = ranges, [-r for r in ranges]
    return values.astype(np.float32)


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return (x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2).astype(np.float32)


def after_gelu(steps: int = 1, width: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(1)
    return gelu(width * random.standard_normal((steps, 500, 8)))


@pytest.mark.parametrize(("bits", "codes"), [(4, 7), (6, 31), (8, 127), (16, 32767)])
def test_the_scale_is_the_range_divided_by_the_largest_code(bits, codes):
    assert largest_code(bits) == codes
    document = single_tier(statistics({"a": values_with_range(12.7, 25.4)}), bits, "step", "absmax")
    layer = document["layers"]["a"]
    assert layer["scales"] == pytest.approx([12.7 / codes, 25.4 / codes], rel=1e-6)
    assert layer["bits"] == [bits, bits]
    assert layer["input_amax"] == pytest.approx(25.4, rel=1e-6)
    assert "shifts" not in layer


def test_a_static_scale_covers_every_step():
    document = single_tier(statistics({"a": values_with_range(3, 9, 6)}), 8, "static", "absmax")
    assert document["layers"]["a"]["scales"] == pytest.approx([9 / 127], rel=1e-6)
    assert len(document["sigmas"]) == 3


@pytest.mark.parametrize("rule", ["absmax", "p999", "mse"])
def test_post_gelu_inputs_use_the_codes_of_both_signs(rule):
    values = after_gelu()
    made = statistics({"fc2": values}, post_gelu=("fc2",))
    layer = single_tier(made, 8, "step", rule)["layers"]["fc2"]
    (scale,), (shift,) = layer["scales"], layer["shifts"]
    codes = np.clip(np.rint((values - shift) / scale), -128, 127)
    assert codes.min() == -127
    assert codes.max() == 127
    # The values below the middle: with a symmetric scale around 0 they would have 5 codes.
    assert len(np.unique(codes[values < 0])) > 5


def test_post_gelu_shift_is_the_middle_of_the_interval():
    measured = input_statistics(after_gelu(steps=3))
    half, shift = range_and_shift(measured, True, "absmax", 8)
    np.testing.assert_allclose(shift - half, measured.minimum, rtol=1e-6)
    np.testing.assert_allclose(shift + half, measured.maximum, rtol=1e-6)


def test_p999_is_the_percentile_of_the_magnitudes():
    values = np.random.default_rng(2).standard_normal((2, 20_000, 5)).astype(np.float32)
    limits = clip_limits(input_statistics(values), False, "p999", 8)
    exact = np.quantile(np.abs(values), 0.999, axis=(1, 2))
    np.testing.assert_allclose(limits, exact, rtol=1 / 16)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("post_gelu", [False, True])
def test_mse_has_the_least_error_of_the_rules(bits, post_gelu):
    values = np.random.default_rng(3).standard_t(5, (1, 20_000, 8)).astype(np.float32)
    values = gelu(values) if post_gelu else values
    measured = input_statistics(values)
    errors = {}
    for rule in ("absmax", "p999", "mse"):
        (half,), (shift,) = range_and_shift(measured, post_gelu, rule, bits)
        quantized = fake_quantize(mx.array(values), half / largest_code(bits), bits, shift)
        errors[rule] = float(((to_numpy(quantized) - values).astype(np.float64) ** 2).mean())
    # The search knows the histogram, not the values: a few percent from the optimum.
    assert errors["mse"] < 1.05 * min(errors["absmax"], errors["p999"])
    assert errors["mse"] < errors["absmax"]


def test_an_input_that_is_always_zero_has_a_scale():
    zeros = np.zeros((2, 4, 3), np.float32)
    made = statistics({"a": zeros, "fc2": zeros}, post_gelu=("fc2",))
    for rule in ("absmax", "p999", "mse"):
        for layer in single_tier(made, 8, "step", rule)["layers"].values():
            assert min(layer["scales"]) > 0
            assert np.isfinite(layer["scales"]).all()


def test_tiers_by_the_threshold_rule():
    assert tier_of(np.array([0.1, 6.0, 6.01, 10.0, 10.01]), [6, 10]).tolist() == [4, 4, 6, 6, 8]


def test_a_multi_tier_configuration_and_its_summary():
    made = statistics(
        {
            "small": values_with_range(5, 5),
            "switching": values_with_range(5, 9),
            "large": values_with_range(20, 30),
            "fc2": after_gelu(steps=2),
        },
        post_gelu=("fc2",),
    )
    tiers = {"linear": [6.0, 10.0], "post_gelu": [0.1, 0.2]}
    document = multi_tier(made, "step", "absmax", tiers)
    layers = document["layers"]
    assert layers["small"]["bits"] == [4, 4]
    assert layers["switching"]["bits"] == [4, 6]
    assert layers["switching"]["scales"] == pytest.approx([5 / 7, 9 / 31], rel=1e-6)
    assert layers["large"]["bits"] == [8, 8]
    # After the shift the range is half of 3 or so: above the limit of 0.2.
    assert layers["fc2"]["bits"] == [8, 8]
    summary = document["summary"]
    assert summary["shares"] == {"A4": 0.375, "A6": 0.125, "A8": 0.5}
    assert summary["average_bits"] == pytest.approx((4 + 4 + 4 + 6 + 4 * 8) / 8)
    assert summary["layers_per_sigma"] == {"A4": [2, 1], "A6": [0, 1], "A8": [2, 2]}
    assert summary["switching_layers"] == ["switching"]
    assert summary["always_a8_layers"] == ["large", "fc2"]


def test_average_bits_weigh_layers_by_their_inputs():
    made = statistics(
        {"wide": np.tile(values_with_range(20), (1, 1, 3)), "narrow": values_with_range(1)}
    )
    document = multi_tier(made, "static", "absmax", {"linear": [6, 10], "post_gelu": [5, 8]})
    assert document["summary"]["average_bits"] == pytest.approx((3 * 8 + 4) / 4)


def test_documents_record_what_made_them():
    made = statistics({"a": values_with_range(1)})
    document = single_tier(made, 8, "step", "mse")
    assert document["configuration"] == {"bits": 8, "granularity": "step", "range": "mse"}
    assert document["model"] == "tiny"
    assert document["images"] == ["0000"]
    assert document["steps"] == [0]
