"""Bins that are fixed by construction, and quantiles read from them."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations import histogram
from ditquant.activations.histogram import (
    NUM_BINS,
    bin_centers,
    bin_edges,
    bin_numbers,
    count_numbers,
    count_numbers_of_parts,
    quantile,
)
from ditquant.backend import mx, to_numpy
from support.activations import count_bins


def expected_counts(values: np.ndarray) -> np.ndarray:
    """By search among the edges, in float64."""
    magnitudes = np.abs(values.astype(np.float64)).ravel()
    numbers = np.searchsorted(bin_edges()[2:-1], magnitudes, side="right") + 1
    numbers[magnitudes == 0] = 0
    return np.bincount(numbers, minlength=NUM_BINS)


def test_edges_are_sixteen_an_octave_from_2_to_the_minus_15_to_2_to_the_17():
    edges = bin_edges()
    assert len(edges) == NUM_BINS + 1 == 514
    assert edges[0] == edges[1] == 0
    assert edges[2] == 2.0**-15 * 17 / 16
    assert edges[-1] == 2.0**17
    one = np.flatnonzero(edges == 1.0)[0]
    np.testing.assert_array_equal(edges[one : one + 17], 1 + np.arange(17) / 16)
    assert np.all((bin_centers()[1:] > edges[1:-1]) & (bin_centers()[1:] < edges[2:]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_counts_are_those_of_a_search_among_the_edges(dtype):
    mx.random.seed(0)
    sizes = mx.exp(3 * mx.random.normal((3, 5, 1, 40)))
    x = (sizes * mx.sign(mx.random.normal(sizes.shape))).astype(dtype)
    # Values on edges, zeros of both signs, and what lies outside the bins.
    x[0, 0, 0, :8] = mx.array([0.0, -0.0, 1.0, -1.0625, 2.0**-15, 2.0**-17, 6e4, 1.0625])
    counts = to_numpy(count_bins(x))
    np.testing.assert_array_equal(counts, expected_counts(to_numpy(x)))
    assert counts.sum() == x.size
    assert counts[0] >= 2


def test_what_lies_outside_counts_in_the_outermost_bins():
    counts = to_numpy(count_bins(mx.array([[1e-30, -1e-40, 1e30, -3e38, 0.0]])))
    assert {int(i): int(counts[i]) for i in np.flatnonzero(counts)} == {0: 1, 1: 2, NUM_BINS - 1: 2}


def test_parts_are_counted_each_by_itself():
    parts = [mx.exp(3 * mx.random.normal((size,))) for size in (1, 40, 7)]
    parts[1][3] = 0.0
    counts = to_numpy(count_numbers_of_parts(bin_numbers(mx.concatenate(parts)), [1, 40, 7]))
    expected = [expected_counts(to_numpy(part)) for part in parts]
    np.testing.assert_array_equal(counts, expected)


def test_lanes_of_a_gpu_add_up_to_the_same_counts(monkeypatch):
    x = mx.random.normal((30, 40))
    plain = to_numpy(count_bins(x))
    monkeypatch.setattr(histogram, "is_accelerated", lambda: True)
    np.testing.assert_array_equal(to_numpy(count_numbers(bin_numbers(x))), plain)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_quantile_is_within_a_bin_of_the_exact_one(share):
    values = np.random.default_rng(1).standard_normal((2, 200_000)) * [[0.1], [30.0]]
    counts = np.stack([expected_counts(row) for row in values])
    exact = np.quantile(np.abs(values), share, axis=1)
    # A bin is 1/16 of its lower edge wide at most.
    np.testing.assert_allclose(quantile(counts, share), exact, rtol=1 / 16)


def test_quantile_of_equal_values_lies_in_their_bin():
    counts = np.zeros(NUM_BINS, dtype=np.int64)
    index = np.flatnonzero(bin_edges() == 4.0)[0]
    counts[index] = 1000
    assert 4.0 < quantile(counts, 0.999) <= bin_edges()[index + 1]
    counts[0] = 10**9
    assert quantile(counts, 0.5) == 0.0
