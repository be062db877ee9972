"""Tuned grids: what offsets do to the values of a packed weight, and that storing them is exact."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ditquant.backend import mx, to_numpy
from ditquant.weights.grids import (
    Grid,
    dequantize,
    pack,
    round_to_nearest,
    stored_affine,
    unpack_codes,
)
from ditquant.weights.tuned_grids import stored_grid, tuned_grid, tuned_weight


def grid_of(bits: int = 4, kind: str = "group", seed: int = 0):
    weight = mx.random.normal((24, 128), key=mx.random.key(seed)) * 0.02
    packed = round_to_nearest(weight, Grid(kind, bits, 32))
    return tuned_grid(SimpleNamespace(name="layer"), packed, kind)


def offsets(grid, size: float = 0.05, seed: int = 1) -> tuple[mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(seed), 2)
    spread, shift = (size * mx.random.normal(grid.shape, key=key) for key in keys)
    return spread, shift


@pytest.mark.parametrize("kind", ["group", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_offsets_of_zero_are_the_start(bits, kind):
    grid = grid_of(bits, kind)
    none = mx.zeros(grid.shape)
    start = dequantize(grid.packed)
    # The values of eight bits are rounded to float16.
    exact = 1e-7 if bits <= 6 else 2e-4
    assert mx.allclose(tuned_weight(grid, none, none), start, rtol=1e-6, atol=exact)
    stored = stored_grid(grid, none, none)
    assert mx.array_equal(stored.scales, grid.packed.scales)
    assert mx.allclose(dequantize(stored), start, rtol=1e-6, atol=exact)


def test_offsets_count_in_units_of_the_scale():
    grid = grid_of()
    none, some = mx.zeros(grid.shape), mx.full(grid.shape, 0.1)
    start = tuned_weight(grid, none, none).reshape(grid.codes.shape)
    size = mx.abs(grid.scales)[..., None]
    shifted = tuned_weight(grid, none, some).reshape(grid.codes.shape)
    assert mx.allclose(shifted - start, 0.1 * size, rtol=1e-3)
    spread = tuned_weight(grid, some, none).reshape(grid.codes.shape)
    around = grid.scales[..., None] * (grid.codes - grid.means[..., None])
    assert mx.allclose(spread - start, 0.1 * around, rtol=1e-3, atol=1e-7)
    # The mean over a group moves with the shift alone.
    assert mx.allclose(mx.mean(spread, axis=2), mx.mean(start, axis=2), atol=1e-7)


@pytest.mark.parametrize("kind", ["group", "channel"])
def test_gradients_are_those_of_finite_differences(kind):
    grid = grid_of(kind=kind)
    point = offsets(grid)
    slope = mx.random.normal((24, 128), key=mx.random.key(5))
    target = mx.random.normal((24, 128), key=mx.random.key(6)) * 0.02

    def loss(spread: mx.array, shift: mx.array) -> mx.array:
        values = tuned_weight(grid, spread, shift)
        return mx.sum(slope * (values - target) ** 2) * 1e3

    gradients = mx.grad(loss, argnums=(0, 1))(*point)
    step = 0.02  # the loss is a parabola in each offset: central differences are exact
    for which, gradient in enumerate(gradients):
        for row, column in ((0, 0), (7, grid.columns - 1), (23, grid.columns // 2)):
            one = np.zeros(grid.shape, dtype=np.float32)
            one[row, column] = step
            ends = []
            for sign in (1, -1):
                moved = list(point)
                moved[which] = moved[which] + sign * mx.array(one)
                ends.append(loss(*moved).item())
            expected = (ends[0] - ends[1]) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(expected, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("kind", ["group", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_what_is_stored_is_exact_in_every_order(bits, kind):
    grid = grid_of(bits, kind)
    stored = stored_grid(grid, *offsets(grid, 0.3))
    scales, biases = (to_numpy(part).astype(np.float64) for part in (stored.scales, stored.biases))
    codes = to_numpy(unpack_codes(stored.weight, bits)).reshape(grid.codes.shape)
    products = scales[..., None] * codes
    values = products + biases[..., None]
    for array in (products, values):
        assert np.array_equal(array.astype(np.float16).astype(np.float64), array)
    dequantized = to_numpy(dequantize(stored)).reshape(values.shape)
    assert np.array_equal(dequantized.astype(np.float64), values)
    assert mx.array_equal(stored.weight, grid.packed.weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_storage_loses_little(bits):
    grid = grid_of(bits)
    spread, shift = offsets(grid, 0.1)
    wanted = to_numpy(tuned_weight(grid, spread, shift)).reshape(grid.codes.shape)
    got = to_numpy(dequantize(stored_grid(grid, spread, shift))).reshape(grid.codes.shape)
    size = np.abs(to_numpy(grid.scales))[..., None]
    # Half of the last bit of a scale, times the codes beside the mean; half a unit for the bias.
    kept = 11 - bits
    bound = 2.0**-kept * 1.2 * (1 + 2**bits)
    assert np.max(np.abs(got - wanted) / size) < bound
    # The group's mean stays.
    means = np.abs((got - wanted).mean(axis=2) / size[..., 0])
    assert means.max() < 2.0**-kept * 1.2


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_any_scale_and_bias_becomes_exact(bits):
    keys = mx.random.split(mx.random.key(bits), 4)
    shape = (64, 8)
    scales = mx.exp(mx.random.uniform(-12, 1, shape, key=keys[0]))
    scales = mx.where(mx.random.bernoulli(0.5, shape, key=keys[1]), scales, -scales)
    # Powers of two, where logarithms err, and values just below them.
    scales[0] = 2.0 ** -mx.arange(8.0)
    scales[1] = scales[0] * (1 - 1e-6)
    means = mx.random.uniform(0, 2**bits - 1, shape, key=keys[2])
    # Far outside the range of the codes too.
    centers = mx.abs(scales) * mx.random.uniform(-200, 200, shape, key=keys[3])
    stored, biases = stored_affine(scales, centers, means, bits)
    codes = mx.broadcast_to(mx.arange(2**bits), (64, 8, 32 // 2**bits if bits < 6 else 1, 2**bits))
    codes = codes.reshape(64, 8, -1)[..., :32] if bits < 6 else codes.reshape(64, 8, -1)
    values = to_numpy(stored).astype(np.float64)[..., None] * to_numpy(codes).astype(np.float64)
    values = values + to_numpy(biases).astype(np.float64)[..., None]
    assert np.all(np.isfinite(values))
    assert np.array_equal(values.astype(np.float16).astype(np.float64), values)
    assert mx.min(mx.abs(stored.astype(mx.float32))).item() >= 2.0**-14


def test_a_channel_grid_keeps_one_scale_a_row():
    grid = grid_of(kind="channel")
    assert grid.shape == (24, 1)
    stored = stored_grid(grid, *offsets(grid))
    for part in (stored.scales, stored.biases):
        assert mx.array_equal(part, mx.broadcast_to(part[:, :1], part.shape))
    assert not mx.array_equal(stored.scales, grid.packed.scales)


def test_negative_scales_stay_negative():
    codes = mx.random.randint(0, 16, (8, 64), key=mx.random.key(0)).astype(mx.float32)
    grid = grid_of()
    negative = SimpleNamespace(
        scales=mx.full((8, 2), -0.125, dtype=mx.float16),
        biases=mx.full((8, 2), 1.0, dtype=mx.float16),
        bits=4, group_size=32,
    )  # fmt: skip
    grid = tuned_grid(SimpleNamespace(name="layer"), pack(codes, negative), "group")
    none, some = mx.zeros(grid.shape), mx.full(grid.shape, 0.5)
    stored = stored_grid(grid, none, some)
    assert mx.max(stored.scales).item() < 0
    assert mx.allclose(dequantize(stored) - dequantize(grid.packed), mx.array(0.5 * 0.125))
