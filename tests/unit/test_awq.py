"""Clipped grids and AWQ's factors: lower errors of what a layer computes, same storage rules."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.weights.gptq import factorize, moment
from ditquant.weights.grids import Grid, Scales, dequantize, fit_scales, pack, values_of
from ditquant.weights.roundings import clipped_scales
from support.layers import layer_error, nearest, rounded_by_gptq

GRIDS = [Grid("group", 4, 64), Grid("group", 3, 32), Grid("group", 2, 128), Grid("channel", 4)]


def heavy_tailed(shape=(32, 256), seed=0):
    """Gaussian weights, one in a hundred of them five times larger."""
    keys = mx.random.split(mx.random.key(seed))
    outliers = mx.random.uniform(shape=shape, key=keys[1]) < 0.01
    return 0.05 * mx.random.normal(shape, key=keys[0]) * mx.where(outliers, 5.0, 1.0)


def inputs(rows=800, channels=256, seed=1):
    """Channels of different sizes, correlated with their neighbours."""
    keys = mx.random.split(mx.random.key(seed), 3)
    x = mx.random.normal((rows, channels), key=keys[0])
    x = x + mx.roll(x, 1, axis=1) + 0.5 * mx.random.normal((rows, 1), key=keys[1])
    return x * mx.exp(mx.random.normal((channels,), key=keys[2]))


def rounded(weight: mx.array, scales: Scales) -> mx.array:
    return values_of(nearest(weight, scales), scales)


@pytest.mark.parametrize("grid", GRIDS)
def test_clipping_lowers_the_error_on_inputs_not_seen(grid):
    weight, x = heavy_tailed(), inputs()
    seen, unseen = moment(x[:400]), moment(x[400:])
    whole = layer_error(weight, rounded(weight, fit_scales(weight, grid)), unseen)
    for importance in (seen, np.diag(seen)):
        scales = clipped_scales(weight, grid, importance)
        assert layer_error(weight, rounded(weight, scales), unseen) < 0.9 * whole


@pytest.mark.parametrize("grid", GRIDS)
def test_each_group_has_the_best_of_what_was_tried(grid):
    """Group by group the weighted error is no larger than without clipping or without weights."""
    weight, matrix = heavy_tailed(), moment(inputs())
    weights = mx.array(np.diag(matrix).astype(np.float32))
    size = grid.group_size if grid.kind == "group" else weight.shape[1]

    def errors(scales: Scales) -> mx.array:
        error = (rounded(weight, scales) - weight) ** 2 * weights
        return error.reshape(len(weight), -1, size).sum(axis=-1)

    clipped = errors(clipped_scales(weight, grid, np.diag(matrix)))
    for other in (fit_scales(weight, grid), fit_scales(weight, grid, importance=weights)):
        # sums of up to 256 float32 terms, of weights scaled differently
        assert mx.all(clipped <= errors(other) * (1 + 256 * 2**-24)).item()


def test_a_matrix_weighs_by_the_groups_own_block():
    weight, matrix = heavy_tailed(), moment(inputs())
    grid = Grid("group", 4, 64)

    def errors(scales: Scales) -> np.ndarray:
        error = np.array(rounded(weight, scales) - weight, dtype=np.float64)
        groups = error.reshape(len(error), -1, 64)
        blocks = [matrix[g : g + 64, g : g + 64] for g in range(0, 256, 64)]
        return np.stack(
            [((groups[:, g] @ block) * groups[:, g]).sum(-1) for g, block in enumerate(blocks)], 1
        )

    chosen = errors(clipped_scales(weight, grid, matrix))
    for other in (clipped_scales(weight, grid, np.diag(matrix)), fit_scales(weight, grid)):
        assert np.all(chosen <= errors(other) * (1 + 1e-4))


@pytest.mark.parametrize("grid", [*GRIDS, Grid("group", 6, 64)])
def test_clipped_scales_obey_the_storage(grid):
    weight = heavy_tailed()
    scales = clipped_scales(weight, grid, moment(inputs()))
    codes = nearest(weight, scales)
    stored = dequantize(pack(codes, scales), mx.float16)
    assert mx.array_equal(stored.astype(mx.float32), values_of(codes, scales))
    assert mx.array_equal(scales.zeros, mx.round(scales.zeros))
    assert mx.all((scales.zeros >= 0) & (scales.zeros < 2**grid.bits)).item()


def test_nothing_asked_for_is_what_it_was():
    weight = heavy_tailed()
    for grid in GRIDS:
        plain, ones = fit_scales(weight, grid), fit_scales(weight, grid, "", mx.ones(256), ())
        assert mx.array_equal(plain.scales, ones.scales)
        assert mx.array_equal(plain.zeros, ones.zeros)


def test_gptq_gains_from_a_clipped_grid():
    """The diagonal leaves the correlations to GPTQ."""
    weight, x = heavy_tailed(), inputs()
    seen, unseen = moment(x[:400]), moment(x[400:])
    grid, factor = Grid("group", 3, 64), factorize(seen, 0.1)
    errors = [
        layer_error(weight, values_of(rounded_by_gptq(weight, scales, factor), scales), unseen)
        for scales in (fit_scales(weight, grid), clipped_scales(weight, grid, np.diag(seen)))
    ]
    assert errors[1] < 0.95 * errors[0]


def test_a_layer_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"mm00\.img\.mlp\.fc1 has 96 inputs"):
        clipped_scales(mx.ones((4, 96)), Grid("group", 4, 64), np.ones(96), "mm00.img.mlp.fc1")
