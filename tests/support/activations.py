"""Activation statistics without a model: made from arrays, as `observe` would make them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ditquant.activations.histogram import bin_numbers, count_numbers
from ditquant.activations.input_statistics import (
    InputStatistics,
    Statistics,
    of_one_image,
    to_fixed,
)
from ditquant.backend import mx, to_numpy


def count_bins(x: mx.array) -> mx.array:
    """(NUM_BINS,) int32 counts of |x| for an array (..., channels) of any float dtype; lazy."""
    return count_numbers(bin_numbers(x))


def input_statistics(steps: np.ndarray) -> InputStatistics:
    """Statistics of one image from float32 values (S, tokens, channels)."""
    wide = steps.astype(np.float64)
    return of_one_image(
        channel_min=steps.min(axis=1),
        channel_max=steps.max(axis=1),
        sum_mean_square=to_fixed((wide**2).mean(axis=(1, 2))),
        histogram=_counts(steps),
        token_histogram=_counts(np.abs(steps).max(axis=2, keepdims=True)),
    )


def _counts(steps: np.ndarray) -> np.ndarray:
    return np.stack([to_numpy(count_bins(mx.array(step))) for step in steps]).astype(np.int64)


def statistics(
    values: Mapping[str, np.ndarray], image: str = "0000", post_gelu: tuple[str, ...] = ()
) -> Statistics:
    """Statistics of one image from linear name -> values (S, tokens, channels)."""
    steps = len(next(iter(values.values())))
    return Statistics(
        model="tiny",
        images=(image,),
        steps=tuple(range(0, 2 * steps, 2)),
        sigmas=np.linspace(1, 0.1, steps, dtype=np.float32),
        input_of={name: name for name in values},
        post_gelu=frozenset(post_gelu),
        inputs={name: input_statistics(array) for name, array in values.items()},
    )
