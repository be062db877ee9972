"""What is collected of single arrays, by every backend's own means."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations import measuring
from ditquant.activations.measuring import sum_of_squares
from ditquant.backend import backend_name, mx, to_numpy
from ditquant.kernels.cuda import measuring as measuring_cuda
from support.activations import count_bins

WAYS = [
    measuring,
    pytest.param(
        measuring_cuda,
        marks=pytest.mark.skipif(backend_name() != "cuda", reason="kernels of CUDA"),
    ),
]
# Odd ones, several of a kind, and those of SD3-medium's text and adaLN.
SHAPES = [(2, 25, 1, 16), (1, 5), (2, 25, 1, 16), (3, 7, 1, 36), (2, 154, 1, 1536), (700, 64)]


def random_array(number: int, dtype: mx.Dtype) -> mx.array:
    """Of many sizes and both signs, with zeros."""
    keys = mx.random.split(mx.random.key(number), 2)
    sizes = mx.exp(2 * mx.random.normal(SHAPES[number], key=keys[0]))
    x = (sizes * mx.random.normal(SHAPES[number], key=keys[1])).astype(dtype)
    x[..., 1] = mx.array(0.0, dtype)
    x[..., 2] = mx.array(-0.0, dtype)
    return x


def collected(way, *passes: list[mx.array]) -> list[dict[str, np.ndarray]]:
    """What some forward passes, each of arrays of the same shapes, found of each array."""
    measured = [[way.measure(x) for x in arrays] for arrays in passes]
    return way.fields_of(measured[-1], [way.evaluated(one) for one in measured])


def as_rows(x: mx.array) -> np.ndarray:
    return to_numpy(x.astype(mx.float32)).reshape(-1, x.shape[-1])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("way", WAYS, ids=["portable", "cuda"])
def test_what_is_collected_is_exact_in_every_dtype(way, dtype):
    arrays = [random_array(number, dtype) for number in range(len(SHAPES))]
    for x, fields in zip(arrays, collected(way, arrays), strict=True):
        rows, of_array = as_rows(x), {name: values[0] for name, values in fields.items()}
        np.testing.assert_array_equal(of_array["channel_min"], rows.min(axis=0))
        np.testing.assert_array_equal(of_array["channel_max"], rows.max(axis=0))
        counts = to_numpy(count_bins(mx.array(rows)))
        np.testing.assert_array_equal(of_array["histogram"], counts)
        largest = mx.array(np.abs(rows).max(axis=1))
        np.testing.assert_array_equal(of_array["token_histogram"], to_numpy(count_bins(largest)))
        # A sum in float32 of n values is off by n roundings of 2^-24 of their magnitudes' sum.
        wide = rows.astype(np.float64)
        np.testing.assert_allclose(of_array["square_sum"][0], (wide**2).sum(), rtol=x.size * 2**-24)


@pytest.mark.parametrize("way", WAYS, ids=["portable", "cuda"])
def test_a_second_run_has_the_same_bits(way):
    arrays = [random_array(number, mx.float16) for number in (3, 4, 5)]
    for first, second in zip(collected(way, arrays), collected(way, arrays), strict=True):
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])


@pytest.mark.parametrize("way", WAYS, ids=["portable", "cuda"])
def test_passes_stay_apart(way):
    arrays = [random_array(number, mx.float32) for number in (0, 3, 2)]
    twice = [x * 2 for x in arrays]
    both = collected(way, arrays, twice)
    for found, *alone in zip(both, collected(way, arrays), collected(way, twice), strict=True):
        for name, values in found.items():
            assert values.shape[0] == 2
            assert values.dtype == (np.int32 if "histogram" in name else np.float32)
            np.testing.assert_array_equal(values, np.concatenate([one[name] for one in alone]))


@pytest.mark.parametrize("way", WAYS, ids=["portable", "cuda"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_leaves_no_finite_sum_of_squares(way, bad):
    x = random_array(3, mx.float32)
    x[1, 2, 0, 4] = bad
    (of_array,) = collected(way, [x])
    assert not np.isfinite(of_array["square_sum"]).any()


def test_sums_of_squares_are_the_same_on_a_gpu(monkeypatch):
    x = mx.random.normal((50, 16))
    here = sum_of_squares(x)
    monkeypatch.setattr(measuring, "is_accelerated", lambda: True)
    assert sum_of_squares(x).shape == here.shape == (1,)
    assert mx.allclose(sum_of_squares(x), here, rtol=1e-5)
