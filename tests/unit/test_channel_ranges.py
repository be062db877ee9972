"""Scales of channel groups and shifts of channels: what they are, and what they save."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.channel_ranges import average_midrange, channel_ranges
from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.input_statistics import merge
from ditquant.activations.quant_config import parse_quant_config
from ditquant.backend import mx, to_numpy
from ditquant.errors import UserError
from ditquant.weights.grids import (
    Grid,
    dequantize,
    fit_scales,
    fractional_codes,
    nearest_codes,
    pack,
)
from support.activations import input_statistics, statistics
from support.schemes import fake_quantize, fake_quantize_dynamic, params_at, single_tier

CHANNELS, SIZE = 128, 32
STATIC = [name for name in GRANULARITIES if not name.startswith("dynamic")]


def outliers(seed: int = 0, steps: int = 3) -> np.ndarray:
    """(steps, 400, 128): one channel 20 times larger, another far from zero, growing over steps."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, 400, CHANNELS))
    x[..., 40] *= 20
    x[..., 100] += 50
    return (x * np.linspace(1, 2, steps)[:, None, None]).astype(np.float32)


def document(x: np.ndarray, granularity: str, bits: int = 8, **options):
    made = statistics({"a": x})
    return single_tier(made, bits, granularity, "absmax", groups=2, degree=1, **options)


def error(x: np.ndarray, granularity: str, row: int, bits: int = 8, **options) -> float:
    """Mean squared error of one step's values by a configuration made from all steps."""
    config = parse_quant_config(document(x, granularity, bits, **options), "here")
    numbers = params_at(config, config.layers["a"], config.sigmas[row])
    values = mx.array(x[row])[None]
    if numbers.scale is None:
        found = fake_quantize_dynamic(
            values, granularity, bits, numbers.shift, channel_group=config.channel_group
        )
    else:
        found = fake_quantize(values, numbers.scale, bits, numbers.shift)
    return float(((to_numpy(found)[0].astype(np.float64) - x[row]) ** 2).mean())


def test_multipliers_are_each_groups_largest_value_over_the_tensors():
    x = outliers()
    half, factors = channel_ranges(
        input_statistics(x), np.abs(x).max(axis=(1, 2)), np.zeros(CHANNELS), SIZE
    )
    by_group = np.abs(x).max(axis=1).reshape(3, -1, SIZE).max(axis=2)
    np.testing.assert_allclose(half, by_group.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(half[:, None] * factors, by_group, rtol=1e-6)
    assert factors.max() == 1
    assert factors.shape == (3, 4)


def test_a_shared_scale_is_one_group():
    x = outliers()
    limit = 0.5 * np.abs(x).max(axis=(1, 2))
    half, factors = channel_ranges(input_statistics(x), limit, np.zeros(CHANNELS), None)
    # What a rule cuts off stays cut off.
    np.testing.assert_allclose(half, limit, rtol=1e-6)
    assert (factors == 1).all()
    assert factors.shape == (3, 1)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_groups_and_shifts_lower_the_error_of_outlier_channels(granularity):
    x = outliers()
    for row in range(len(x)):
        plain = error(x, granularity, row)
        grouped = error(x, granularity, row, channel_group=SIZE)
        both = error(x, granularity, row, channel_group=SIZE, channel_shift=True)
        # Two of four groups hold an outlier; the shift frees one of these.
        assert grouped < 0.75 * plain
        assert both < 0.75 * grouped


@pytest.mark.parametrize("granularity", STATIC)
def test_nothing_that_was_measured_is_clipped(granularity):
    x = outliers()
    made = parse_quant_config(
        document(x, granularity, channel_group=SIZE, channel_shift=True), "here"
    )
    for row, sigma in enumerate(made.sigmas):
        numbers = params_at(made, made.layers["a"], sigma)
        scale = np.repeat(numbers.scale, SIZE)
        reach = np.abs(x[row] - numbers.shift).max(axis=0) / scale
        # Codes end at 127; float32 in the file moves a scale by 1e-7 of itself.
        assert reach.max() <= 127 * (1 + 1e-6)


def test_the_shift_is_the_average_over_images_in_any_order():
    parts = [statistics({"a": outliers(seed)}, f"{seed:04d}") for seed in range(5)]
    midranges = [
        (part.inputs["a"].channel_min + part.inputs["a"].channel_max).mean(axis=0) / 2
        for part in parts
    ]
    found = average_midrange(merge(parts), "a")
    # Each image's extremes are rounded to multiples of 2^-20.
    np.testing.assert_allclose(found, np.mean(midranges, axis=0), rtol=1e-6, atol=2.0**-20)
    np.testing.assert_array_equal(found, average_midrange(merge(parts[::-1]), "a"))


def test_multipliers_migrate_into_the_weights_group_scales():
    """W (m_g s q) with the group's weight scale times m_g is the same sum: no code changes."""
    x = outliers()
    config = parse_quant_config(document(x, "step", channel_group=SIZE), "here")
    layer = config.layers["a"]
    weight = mx.array(np.random.default_rng(1).standard_normal((16, CHANNELS)).astype(np.float32))
    scales = fit_scales(weight, Grid("group", 4, SIZE))
    codes = nearest_codes(fractional_codes(weight, scales), 4)
    weights = to_numpy(dequantize(pack(codes, scales)))
    numbers = params_at(config, layer, config.sigmas[0])
    integers = np.rint(x[0] / np.repeat(numbers.scale, SIZE))
    values = to_numpy(fake_quantize(mx.array(x[0]), numbers.scale, 8)).astype(np.float64)
    simulated = values @ weights.T
    factors = np.repeat(layer.multipliers[0], SIZE)
    migrated = weights.astype(np.float64) * factors
    # Scales and values are rounded to float32, by 6e-8 each.
    tolerance = 2e-7 * np.abs(values).sum(axis=1).max() * np.abs(weights).max()
    found = (integers * layer.scales[0]) @ migrated.T
    np.testing.assert_allclose(found, simulated, rtol=0, atol=tolerance)


def test_post_gelu_inputs_keep_their_one_shift_and_scale():
    x = np.maximum(outliers(), -0.17).astype(np.float32)
    made = statistics({"fc2": x}, post_gelu=("fc2",))
    options = {"channel_group": SIZE, "channel_shift": True}
    (entry,) = single_tier(made, 8, "step", "absmax", **options)["layers"].values()
    assert "multipliers" not in entry
    assert "channel_shift" not in entry
    assert len(entry["shifts"]) == 3


def test_groups_that_do_not_fill_an_input():
    with pytest.raises(UserError, match=r"channel_group: a has 96 channels, .* groups of 64"):
        document(outliers()[..., :96], "step", channel_group=64)


@pytest.mark.parametrize(
    "change",
    [
        {"multipliers": [[1.0, 0.5], [1.0], [1.0, 0.5]]},
        {"multipliers": [[1.0, 0.5]] * 2},
        {"multipliers": [[1.0, 0.5, 0.5]] * 3},
        {"multipliers": [[1.0, 0.0]] * 3},
        {"channel_shift": [0.0] * 7},
        {"channel_shift": [float("nan")] * CHANNELS},
    ],
)
def test_files_that_do_not_fit_together(change):
    made = document(outliers(), "step")
    made["layers"]["a"] |= change
    with pytest.raises(UserError, match="here, a"):
        parse_quant_config(made, "here")
