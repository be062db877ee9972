"""Grids: exact storage, codes that MLX reads, and errors no larger than MLX's own quantizer's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network
from ditquant.weights.grids import (
    Grid,
    Scales,
    dequantize,
    fit_scales,
    fractional_codes,
    nearest_codes,
    pack,
    pack_codes,
    unpack_codes,
    values_of,
)

BITS = (2, 3, 4, 6, 8)
GROUPS = (32, 64, 128)
ROOT = Path(__file__).parents[2]


def gaussian(shape=(48, 256), seed=0, scale=0.05):
    return mx.random.normal(shape, key=mx.random.key(seed)) * scale


def nearest(weight, grid):
    """The values of round-to-nearest, and the scales."""
    scales = fit_scales(weight, grid)
    return dequantize(
        pack(nearest_codes(fractional_codes(weight, scales), grid.bits), scales)
    ), scales


def mean_square(array):
    return mx.mean(array.astype(mx.float32) ** 2).item()


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_as_mlx_packs_them(bits, group_size):
    packed, scales, biases = mx.quantize(gaussian(), group_size, bits)
    codes = unpack_codes(packed, bits)
    assert mx.array_equal(pack_codes(codes, bits), packed)
    # What MLX reads from those bits are those codes.
    repeat = lambda array: mx.repeat(array, group_size, axis=1)  # noqa: E731
    values = repeat(scales) * codes + repeat(biases)
    expected = mx.dequantize(packed, scales, biases, group_size, bits)
    # Fused or not, scale * code + bias rounds twice at most: once to each side of its size.
    assert mx.max(mx.abs(values - expected)).item() <= 2 * 2**-24 * mx.max(mx.abs(biases)).item()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(BITS), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_packing_round_trip(bits, seed, rows):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 64))
    packed = pack_codes(mx.array(codes), bits)
    assert packed.shape == (rows, 64 * bits // 32)
    assert np.array_equal(np.array(unpack_codes(packed, bits)), codes)


@pytest.mark.parametrize("kind", ["group", "channel"])
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_values_are_exact_in_every_order(bits, group_size, kind):
    weight = gaussian()
    grid = Grid(kind, bits, group_size)
    scales = fit_scales(weight, grid)
    codes = mx.random.randint(0, 2**grid.bits, weight.shape, key=mx.random.key(1))
    packed = pack(codes, scales)
    stored = dequantize(packed, mx.float16)
    # (q - z) * s in float32, what the learning optimises
    assert mx.array_equal(stored.astype(mx.float32), values_of(codes.astype(mx.float32), scales))
    # q * s + b in float16, rounded after each step
    repeat = lambda array: mx.repeat(array, scales.group_size, axis=1)  # noqa: E731
    product = codes.astype(mx.float16) * repeat(packed.scales)
    assert mx.array_equal(product + repeat(packed.biases), stored)


def test_eight_bits_are_what_mlx_dequantizes():
    weight = gaussian()
    values, scales = nearest(weight, Grid("group", 8, 64))
    ideal = values_of(nearest_codes(fractional_codes(weight, scales), 8), scales)
    # The products and sums round to 11 bits: half an ulp each of at most twice the largest value.
    assert mx.max(mx.abs(values - ideal)).item() <= 2 * 2**-11 * mx.max(mx.abs(weight)).item()
    assert mean_square(values - weight) < 1e-4 * mean_square(weight)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_nearest_is_no_worse_than_mlx(bits, group_size):
    weight = gaussian(seed=bits)
    values, _ = nearest(weight, Grid("group", bits, group_size))
    own = mx.dequantize(*mx.quantize(weight.astype(mx.float16), group_size, bits), group_size, bits)
    ratio = mean_square(values - weight) / mean_square(own.astype(mx.float32) - weight)
    assert ratio <= 1.02**2


@pytest.fixture(scope="module")
def demo_linears():
    model = load_network(read_spec("demo"), mx.float32)
    return model.linears[::7]


def test_nearest_is_no_worse_than_mlx_on_the_demo_model(demo_linears):
    for linear in demo_linears:
        weight = linear.module.weight
        values, _ = nearest(weight, Grid("group", 4, 64))
        own = mx.dequantize(*mx.quantize(weight.astype(mx.float16), 64, 4), 64, 4)
        ratio = mean_square(values - weight) / mean_square(own.astype(mx.float32) - weight)
        assert ratio <= 1.02**2, linear.name


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(BITS),
    st.integers(0, 2**32 - 1),
    st.floats(-2.0, 2.0),
    st.sampled_from([1e-3, 0.05, 1.0, 30.0]),
)
def test_error_is_at_most_that_of_covering_the_range(bits, seed, offset, scale):
    """Half a step a weight is what the scale that covers the whole range would cost."""
    weight = mx.array(np.random.default_rng(seed).normal(offset, 1.0, (4, 64)) * scale)
    values, _ = nearest(weight, Grid("group", bits, 64))
    width = mx.maximum(weight.max(axis=1), 0) - mx.minimum(weight.min(axis=1), 0)
    # An integer zero point may cost one of the 2^bits - 1 steps, the cut scale one unit of its last
    # bit; scales are at least the smallest normal float16. The storage of 8 bits rounds values.
    step = width / (2**bits - 2) * (1 + 2.0 ** -(10 - bits if bits <= 6 else 10))
    bound = 0.5 * mx.maximum(step, 2.0**-14) + (0 if bits <= 6 else 2**-10) * width
    assert mx.all(mx.sqrt(mx.mean((values - weight) ** 2, axis=1)) <= bound).item()


def test_channel_grid_is_a_group_grid():
    weight = gaussian((64, 384))
    scales = fit_scales(weight, Grid("channel", 4))
    packed = pack(nearest_codes(fractional_codes(weight, scales), 4), scales)
    assert packed.group_size == 128
    assert mx.array_equal(packed.scales, mx.repeat(packed.scales[:, :1], 3, axis=1))
    assert mx.array_equal(packed.biases, -8 * packed.scales)
    codes = np.array(unpack_codes(packed.weight, 4))
    assert codes.min() == 0
    assert codes.max() == 15


def test_channel_scale_takes_the_sign_of_the_longer_side():
    """-8 steps reach one side and 7 the other: the sign of the scale gives the longer side 8."""
    row = mx.linspace(-0.7, 0.8, 64)
    values, scales = nearest(mx.stack([row, -row]), Grid("channel", 4))
    assert scales.scales[0, 0].item() < 0 < scales.scales[1, 0].item()
    assert mx.max(values[0]).item() == pytest.approx(0.8, rel=2**-6)
    assert mx.array_equal(values[0], -values[1])


def test_zero_stays_zero():
    weight = mx.concatenate([mx.zeros((2, 64)), gaussian((2, 64))], axis=1)
    for grid in (Grid("group", 4, 64), Grid("channel", 4)):
        values, _ = nearest(weight, grid)
        assert mx.array_equal(values[:, :64], weight[:, :64])


def test_scales_are_normal_numbers_whatever_the_weights():
    tiny = fit_scales(gaussian(scale=1e-9), Grid("group", 4, 64))
    assert mx.all(mx.abs(tiny.scales.astype(mx.float32)) >= 2.0**-14).item()


def test_a_negative_scale_is_stored_and_read():
    scales = Scales(mx.full((1, 1), -0.125, dtype=mx.float16), mx.full((1, 1), 8.0), 4, 32)
    codes = mx.arange(32)[None] % 16
    assert mx.array_equal(dequantize(pack(codes, scales)), -0.125 * (codes - 8))


@pytest.mark.parametrize(
    ("grid", "columns"), [(Grid("group", 4, 128), 192), (Grid("channel", 4), 48)]
)
def test_a_size_that_does_not_divide_names_layer_and_sizes(grid, columns):
    with pytest.raises(UserError, match=rf"mm03\.img\.attn\.q_proj has {columns} inputs"):
        fit_scales(gaussian((8, columns)), grid, "mm03.img.attn.q_proj")
