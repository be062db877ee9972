"""GPTQ: the published algorithm's codes, exact storage, and errors below round-to-nearest's."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.weights import gptq
from ditquant.weights.gptq import factorize, moment
from ditquant.weights.grids import Grid, Scales, dequantize, fit_scales, pack, values_of
from support.layers import layer_error, nearest, rounded_by_gptq


def weights(outputs=24, inputs=192, seed=0):
    return mx.random.normal((outputs, inputs), key=mx.random.key(seed)) * 0.05


def correlated(rows=600, channels=192, seed=1):
    """Like a model's inputs: near a subspace, and with channels of different sizes."""
    keys = mx.random.split(mx.random.key(seed), 4)
    few = mx.random.normal((rows, channels // 6), key=keys[0])
    mixed = few @ mx.random.normal((channels // 6, channels), key=keys[1])
    sizes = mx.exp(mx.random.normal((channels,), key=keys[2]))
    return (mixed + 0.5 * mx.random.normal((rows, channels), key=keys[3])) * sizes


def error_of(weight, scales, codes, matrix):
    return layer_error(weight, values_of(codes, scales), matrix)


def textbook(weight: mx.array, scales: Scales, matrix: np.ndarray, damping: float, order):
    """GPTQ as published: invert H, then change every later column after each rounding."""
    columns = matrix.shape[0]
    work = np.array(weight, dtype=np.float64)[:, order]
    damped = matrix + damping * np.mean(np.diag(matrix)) * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T
    codes = np.zeros(work.shape)
    for k in range(columns):
        group = order[k] // scales.group_size
        step = np.array(scales.scales, dtype=np.float64)[:, group]
        zero = np.array(scales.zeros, dtype=np.float64)[:, group]
        codes[:, k] = np.clip(np.round(work[:, k] / step + zero), 0, 2**scales.bits - 1)
        error = (work[:, k] - step * (codes[:, k] - zero)) / upper[k, k]
        work[:, k + 1 :] -= np.outer(error, upper[k, k + 1 :])
    result = np.empty_like(codes)
    result[:, order] = codes
    return result


@pytest.mark.parametrize("grid", [Grid("group", 4, 32), Grid("group", 3, 64), Grid("channel", 4)])
def test_codes_are_those_of_the_published_algorithm(grid):
    weight, matrix = weights(), moment(correlated())
    scales = fit_scales(weight, grid)
    order = np.argsort(-np.diag(matrix), kind="stable")
    expected = textbook(weight, scales, matrix, 0.01, order)
    codes = rounded_by_gptq(weight, scales, factorize(matrix, 0.01))
    # float64 on both sides: a number would have to lie within 1e-12 of a tie to round elsewhere
    assert np.array_equal(np.array(codes), expected)


@pytest.mark.parametrize("block", [1, 7, 128, 500])
def test_blocks_of_columns_change_nothing(monkeypatch, block):
    weight, factor = weights(), factorize(moment(correlated()), 0.01)
    scales = fit_scales(weight, Grid("group", 4, 64))
    expected = rounded_by_gptq(weight, scales, factor)
    monkeypatch.setattr(gptq, "_BLOCK", block)
    assert mx.array_equal(rounded_by_gptq(weight, scales, factor), expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_layers_error_is_below_that_of_round_to_nearest(bits):
    weight, x = weights(seed=bits), correlated(seed=bits)
    scales = fit_scales(weight, Grid("group", bits, 64))
    codes = rounded_by_gptq(weight, scales, factorize(moment(x[:300]), 0.01))
    for rows, ratio in ((x[:300], 0.5), (x[300:], 0.6)):
        matrix = moment(rows)
        rounded = error_of(weight, scales, nearest(weight, scales), matrix)
        assert error_of(weight, scales, codes, matrix) < ratio * rounded


def test_uncorrelated_inputs_leave_round_to_nearest():
    weight = weights()
    scales = fit_scales(weight, Grid("group", 4, 64))
    matrix = np.diag(np.linspace(0.5, 3.0, 192))
    assert mx.array_equal(
        rounded_by_gptq(weight, scales, factorize(matrix, 0.01)), nearest(weight, scales)
    )


def test_the_result_packs_exactly():
    weight = weights()
    scales = fit_scales(weight, Grid("group", 4, 32))
    codes = rounded_by_gptq(weight, scales, factorize(moment(correlated()), 0.01))
    assert set(np.unique(np.array(codes))) == set(range(16))
    assert mx.array_equal(dequantize(pack(codes, scales)), values_of(codes, scales))


def test_two_runs_agree():
    weight, matrix = weights(), moment(correlated())
    scales = fit_scales(weight, Grid("group", 4, 64))
    first, second = (rounded_by_gptq(weight, scales, factorize(matrix, 0.01)) for _ in range(2))
    assert mx.array_equal(first, second)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_channels_that_are_always_zero_are_rounded_to_nearest(damping):
    weight, x = weights(), np.array(correlated())
    dead = np.array([0, 5, 64, 191])
    x[:, dead] = 0.0
    scales = fit_scales(weight, Grid("group", 4, 64))
    codes = rounded_by_gptq(weight, scales, factorize(moment(mx.array(x)), damping))
    expected = np.array(nearest(weight, scales))
    assert np.array_equal(np.array(codes)[:, dead], expected[:, dead])
    everything = rounded_by_gptq(weight, scales, factorize(np.zeros((192, 192)), damping))
    assert np.array_equal(np.array(everything), expected)


def test_a_singular_matrix_gets_more_damping_and_says_so():
    x = correlated(rows=20)
    factor = factorize(moment(x) - 0.004 * np.mean(np.diag(moment(x))) * np.eye(192), 1e-3)
    assert factor.damping == pytest.approx(1e-2)
    assert np.all(np.isfinite(factor.upper))
    assert factorize(moment(x), 0.01).damping == 0.01


def test_the_factor_is_of_the_damped_matrix():
    matrix = moment(correlated())
    factor = factorize(matrix, 0.02)
    assert np.array_equal(np.tril(factor.upper, -1), np.zeros((192, 192)))
    expected = matrix + 0.02 * np.mean(np.diag(matrix)) * np.eye(192)
    product = factor.upper @ factor.upper.T
    assert np.allclose(product, expected[factor.order][:, factor.order], rtol=1e-9)


def test_matrices_that_no_inputs_have_are_refused():
    broken = np.eye(8)
    broken[2, 2] = np.nan
    with pytest.raises(UserError, match=r"NaN or infinity in .* inputs of mm01\.img\.mlp\.fc2"):
        factorize(broken, 0.01, "mm01.img.mlp.fc2")
    with pytest.raises(UserError, match="not positive definite even with a damping of 1"):
        factorize(40.0 - 39.0 * np.eye(8), 0.01)


def test_moments_are_sums_over_rows(monkeypatch):
    x = correlated(50, 32, 3)
    monkeypatch.setattr(gptq, "_ROWS_AT_ONCE", 16)
    expected = np.array(x, dtype=np.float64).T @ np.array(x, dtype=np.float64)
    size = np.abs(expected).max()
    # sums of 50 float32 products
    assert np.abs(moment(x.reshape(5, 10, 1, 32)) - expected).max() < 50 * 2**-24 * size
    assert moment(x).dtype == np.float64
