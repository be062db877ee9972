"""Statistics of what a linear reads, as part of the forward pass's graph, on every backend.

`kernels.cuda.measuring` has the same functions for CUDA; `observe` says when an array is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..backend import compiled, is_accelerated, mx, to_numpy
from .histogram import bin_numbers, count_numbers, count_numbers_of_parts


class Measurement(NamedTuple):
    """Lazy statistics of one array of rows (tokens, channels).

    Attributes:
        channel_min, channel_max: (channels,) float32 over tokens.
        square_sum: (1,) float32, over all values.
        histogram: (NUM_BINS,) int32 counts of |x|.
        token_bin: (tokens,) uint16, the bin of each token's largest |x|.
    """

    channel_min: mx.array
    channel_max: mx.array
    square_sum: mx.array
    histogram: mx.array
    token_bin: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        """All that is to be computed."""
        return list(self)


def sum_of_squares(x: mx.array) -> mx.array:
    """(1,) float32. On the CPU a product of BLAS, which writes no squares down; a GPU's products
    round float32."""
    if is_accelerated():
        return mx.square(x).sum(keepdims=True).reshape(1)
    return mx.inner(x.reshape(1, -1), x.reshape(1, -1)).reshape(1)


def _measure(x: mx.array) -> tuple[mx.array, ...]:
    rows = x.reshape(-1, x.shape[-1])
    # Bin numbers are in the order of |x|: a token's largest value has its largest bin.
    numbers = bin_numbers(rows)
    return (
        rows.min(axis=0).astype(mx.float32),
        rows.max(axis=0).astype(mx.float32),
        sum_of_squares(rows.astype(mx.float32)),
        count_numbers(numbers),
        numbers.max(axis=1),
    )


# A few shapes occur, so a few graphs are made; each forward pass then only repeats them.
_compiled_measure = compiled(_measure)


def measure(x: mx.array) -> Measurement:
    """Of an array (..., channels) of any float dtype; lazy."""
    return Measurement(*_compiled_measure(x))


def evaluated(measurements: Sequence[Measurement]) -> list[np.ndarray]:
    """One forward pass's numbers, for `fields_of`; runs the graph.

    Each field joined over all arrays, on the host: that is faster there than many small copies on
    the device.
    """
    *columns, token_bins = zip(*measurements, strict=True)
    token_histogram = count_numbers_of_parts(
        mx.concatenate(list(token_bins)), [array.size for array in token_bins]
    )
    mx.eval(token_histogram, columns)
    joined = [np.concatenate([to_numpy(array) for array in arrays]) for arrays in columns]
    return [*joined, to_numpy(token_histogram).reshape(-1)]


def fields_of(
    measurements: Sequence[Measurement], passes: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """What S forward passes found of each array.

    Args:
        measurements: of any of the passes.
        passes: what `evaluated` returned for each.

    Returns:
        For each array: channel_min, channel_max (S, channels) and square_sum (S, 1)
        float32; histogram and token_histogram, of each token's largest, (S, NUM_BINS) int32.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in measurements]
    names = (*Measurement._fields[:-1], "token_histogram")
    for name, joined in zip(names, zip(*passes, strict=True), strict=True):
        # A token's bins become the counts of a histogram; the other fields are as long as before.
        field = "histogram" if name == "token_histogram" else name
        lengths = [getattr(measurement, field).size for measurement in measurements]
        parts = np.split(np.stack(joined), np.cumsum(lengths)[:-1], axis=1)
        for of_array, part in zip(found, parts, strict=True):
            of_array[name] = part
    return found
