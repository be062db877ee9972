"""A histogram of |x| whose bins are fixed by construction, so that any two add up exactly.

Edges taken from the first batch clip what comes later, and edges that follow the data cannot be
merged without loss. Here the bins are the floating-point format itself: the exponent and the first
four mantissa bits of a float32 are a bin number, 16 bins an octave, evenly wide within an octave.
That costs a shift and no logarithm, it is the same number on every device, and counts are integers.

Bin 0 holds exact zeros; bins 1 to 512 cover 2^-15 to 2^17, and what lies outside counts in the
first or last of them (extremes are kept apart, exactly).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import compiled, is_accelerated, mx

_MANTISSA_BITS = 4
_OCTAVES = 32
_SMALLEST_EXPONENT = -15
# float32: 23 mantissa bits, exponent bias 127.
_SHIFT = 23 - _MANTISSA_BITS
_FIRST = (127 + _SMALLEST_EXPONENT) << _MANTISSA_BITS

NUM_BINS = 1 + (_OCTAVES << _MANTISSA_BITS)

# Counters that neighbouring channels do not share: on a GPU additions to one address wait in line.
_GPU_LANES = 16


def bin_edges() -> np.ndarray:
    """(NUM_BINS + 1,) float64: bin i holds edges[i] <= |x| < edges[i + 1]; edges[0] = edges[1] = 0.

    The last edge is 2^17, though the last bin also holds what is larger.
    """
    numbers = np.arange(_FIRST, _FIRST + NUM_BINS, dtype=np.int32)
    edges = np.concatenate([[0.0], (numbers << _SHIFT).view(np.float32).astype(np.float64)])
    edges[1] = 0.0
    return edges


def bin_centers() -> np.ndarray:
    """(NUM_BINS,) float64: the middle of each bin."""
    edges = bin_edges()
    return (edges[:-1] + edges[1:]) / 2


def bin_numbers(x: mx.array) -> mx.array:
    """The bin of each |x|, uint16 of the same shape; any float dtype. Larger |x|, larger number."""
    bits = x.astype(mx.float32).view(mx.int32) & 0x7FFFFFFF
    # The minimum with the bits themselves leaves 0 for zeros alone.
    numbers = mx.minimum(mx.clip((bits >> _SHIFT) - (_FIRST - 1), 1, NUM_BINS - 1), bits)
    return numbers.astype(mx.uint16)


# `bin_numbers` of one value in CUDA's language, for kernels that count while they read.
BIN_NUMBER_CUDA = f"""
__device__ int bin_number(float value) {{
    const int bits = __float_as_int(value) & 0x7fffffff;
    return min(min(max((bits >> {_SHIFT}) - {_FIRST - 1}, 1), {NUM_BINS - 1}), bits);
}}
"""


def _occurrences(numbers: mx.array, length: int) -> mx.array:
    """(length,) int32: how often each number from 0 to length - 1 occurs in `numbers` (N,); lazy.

    Taking table[numbers] has as its gradient, with respect to the table, the sum of ones over the
    places that read each entry: the count. MLX adds it up along one axis in 1 ns a value on the
    CPU; `mx.zeros(...).at[numbers].add(1)`, a scatter of any shape, takes 20.
    """
    # From the host's memory: `mx.zeros` would be one more operation in every forward pass.
    table = mx.array(np.zeros(length, dtype=np.int32))
    ones = mx.broadcast_to(mx.array(1, dtype=mx.int32), numbers.shape)
    _, (counts,) = mx.vjp(lambda t: mx.take_along_axis(t, numbers, axis=0), [table], [ones])
    return counts


# Compiled because a gradient walks through all of the graph that its argument hangs on: this way it
# is taken once, of an argument that hangs on nothing.
_compiled_occurrences = compiled(_occurrences)


def count_numbers(numbers: mx.array) -> mx.array:
    """(NUM_BINS,) int32 counts of bin numbers (..., channels); lazy."""
    if not is_accelerated():
        return _compiled_occurrences(numbers.reshape(-1), NUM_BINS)
    lanes = mx.arange(numbers.shape[-1], dtype=mx.uint16) % _GPU_LANES
    counts = _compiled_occurrences((numbers + lanes * NUM_BINS).reshape(-1), _GPU_LANES * NUM_BINS)
    return counts.reshape(_GPU_LANES, NUM_BINS).sum(axis=0)


def count_numbers_of_parts(numbers: mx.array, sizes: Sequence[int]) -> mx.array:
    """(parts, NUM_BINS) int32: counts of many short arrays in one pass; lazy.

    Args:
        numbers: (N,) bin numbers, the parts one after the other.
        sizes: of the parts, N together.
    """
    first = np.repeat(np.arange(len(sizes), dtype=np.int32) * NUM_BINS, sizes)
    counts = _compiled_occurrences(mx.array(first) + numbers, len(sizes) * NUM_BINS)
    return counts.reshape(len(sizes), NUM_BINS)


def quantile(counts: np.ndarray, share: float) -> np.ndarray:
    """The |x| below which `share` of the values lie, evenly spread within a bin.

    Args:
        counts: (..., NUM_BINS) integers, at least one value each.
        share: in (0, 1).

    Returns:
        (...) float64, off by one bin's width (1/16 of the value) at most.
    """
    cumulative = np.cumsum(counts, axis=-1)
    wanted = share * cumulative[..., -1:]
    index = np.argmax(cumulative >= wanted, axis=-1)[..., None]
    inside = np.take_along_axis(counts, index, axis=-1)
    before = np.take_along_axis(cumulative, index, axis=-1) - inside
    edges = bin_edges()
    low, high = edges[index], edges[index + 1]
    return (low + (high - low) * (wanted - before) / np.maximum(inside, 1))[..., 0]
