"""Statistics of what a linear reads, on CUDA: one kernel that reads the array once.

`mx.compile` joins elementwise operations and stops at each of the reductions, so that MLX reads an
array six times, and counts by additions to memory that all processors share. Here each block of
threads takes some channels of some rows, and counts in its own memory. What the blocks found is put
together once a forward pass, for many arrays by one kernel.

Sums are taken in a fixed order, so that a second run gives the same bits; they may differ from
`activations.measuring`'s in the last place. Everything else is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ...activations.histogram import BIN_NUMBER_CUDA, NUM_BINS
from ...backend import compiled, mx, to_numpy
from .launching import cuda_kernel
from .measuring_sources import MEASURE, joining_source

_THREADS = 256
# Blocks that keep all of an H200's 132 processors busy, some of them waiting for memory.
_BLOCKS = 264
# Neighbouring threads that read one row, 16 bytes each.
_VECTORS = 4
# Arrays that are put together by one kernel: each is an argument of it.
_TOGETHER = 16
# Threads of a block that put together, the bins of one of its blocks, and its first blocks.
_JOINING_THREADS = 512
_BINS_OF_BLOCK = 64
_BIN_BLOCKS = -(-NUM_BINS // _BINS_OF_BLOCK)


class _Layout(NamedTuple):
    """How an array (rows, channels) is divided among blocks of threads.

    Attributes:
        together: adjacent values that a thread reads at once.
        vectors: neighbouring threads that read one row.
        slabs, slab_rows: so many slabs of so many rows (the last may have less).
    """

    rows: int
    channels: int
    together: int
    vectors: int
    slabs: int
    slab_rows: int

    @property
    def chunks(self) -> int:
        return self.channels // (self.together * self.vectors)

    @property
    def parts(self) -> int:
        return self.slabs * self.chunks

    @property
    def length(self) -> int:
        """Of what the blocks found."""
        columns = self.slabs * 3 * self.channels
        return columns + self.parts * (1 + NUM_BINS) + self.chunks * self.rows

    @property
    def constants(self) -> list[tuple[str, int]]:
        return [
            ("ROWS", self.rows),
            ("CHANNELS", self.channels),
            ("N", self.together),
            ("VECTORS", self.vectors),
            ("SLABS", self.slabs),
            ("BINS", NUM_BINS),
        ]


def layout_of(rows: int, channels: int, size: int) -> _Layout:
    """Of an array whose values have `size` bytes each."""
    together = 16 // size if channels % (16 // size) == 0 else 1
    vectors = _VECTORS
    while channels % (together * vectors):
        vectors //= 2
    at_once = _THREADS // vectors
    most = -(-rows // at_once)
    slabs = min(most, -(-_BLOCKS // (channels // (together * vectors))))
    slab_rows = -(-most // slabs) * at_once
    return _Layout(rows, channels, together, vectors, -(-rows // slab_rows), slab_rows)


class Measurement(NamedTuple):
    """Lazy: what the blocks found of one array.

    Attributes:
        found: (layout.length,) int32, floats by their bits.
        layout: see `_Layout`.
    """

    found: mx.array
    layout: _Layout

    @property
    def arrays(self) -> list[mx.array]:
        """All that is to be computed."""
        return [self.found]


@cache
def _measuring(layout: _Layout) -> Callable[[mx.array], mx.array]:
    """Compiled, so that a call does not describe the kernel anew."""

    def found(x: mx.array) -> mx.array:
        constants = [*layout.constants, ("SLAB_ROWS", layout.slab_rows), ("THREADS", _THREADS)]
        (out,) = cuda_kernel("measure", MEASURE, ("x",), BIN_NUMBER_CUDA)(
            inputs=[x],
            template=[("T", x.dtype), *constants],
            grid=(layout.chunks * _THREADS, layout.slabs, 1),
            threadgroup=(_THREADS, 1, 1),
            output_shapes=[(layout.length,)],
            output_dtypes=[mx.int32],
        )
        return out

    return compiled(found)


def measure(x: mx.array) -> Measurement:
    """Of an array (..., channels) of any float dtype."""
    channels = x.shape[-1]
    layout = layout_of(x.size // channels, channels, x.dtype.size)
    return Measurement(_measuring(layout)(x), layout)


def _field_lengths(channels: int) -> dict[str, int]:
    """How many numbers each field has in a joined row, in order; nothing reads channel_sum."""
    of_channels = dict.fromkeys(("channel_min", "channel_max", "channel_sum"), channels)
    counts = dict.fromkeys(("histogram", "token_histogram"), NUM_BINS)
    return {**of_channels, "square_sum": 1, **counts}


@cache
def _joining(layout: _Layout, count: int) -> Callable[..., mx.array]:
    """Of so many arrays' `found`: (count, a joined row) int32, see `measuring_sources`."""
    names = tuple(f"part_{array}" for array in range(count))
    blocks = 1 + _BIN_BLOCKS + -(-layout.channels // _JOINING_THREADS)
    constants = [
        *layout.constants,
        ("THREADS", _JOINING_THREADS),
        ("BINS_OF_BLOCK", _BINS_OF_BLOCK),
        ("BIN_BLOCKS", _BIN_BLOCKS),
    ]

    def joined(*found: mx.array) -> mx.array:
        source = joining_source(count)
        (out,) = cuda_kernel(f"join_{count}", source, names, BIN_NUMBER_CUDA)(
            inputs=list(found),
            template=constants,
            grid=(blocks * _JOINING_THREADS, count, 1),
            threadgroup=(_JOINING_THREADS, 1, 1),
            output_shapes=[(count, sum(_field_lengths(layout.channels).values()))],
            output_dtypes=[mx.int32],
        )
        return out

    return compiled(joined)


def _groups(measurements: Sequence[Measurement]) -> list[tuple[_Layout, list[int]]]:
    """Numbers of arrays that one kernel puts together: of one layout, at most `_TOGETHER`."""
    of_layout: dict[_Layout, list[int]] = {}
    for number, measurement in enumerate(measurements):
        of_layout.setdefault(measurement.layout, []).append(number)
    return [
        (layout, numbers[first : first + _TOGETHER])
        for layout, numbers in of_layout.items()
        for first in range(0, len(numbers), _TOGETHER)
    ]


def evaluated(measurements: Sequence[Measurement]) -> list[np.ndarray]:
    """One forward pass's numbers, for `fields_of`: the joined rows of each group of arrays."""
    joined = [
        _joining(layout, len(members))(*(measurements[number].found for number in members))
        for layout, members in _groups(measurements)
    ]
    mx.eval(joined)
    return [to_numpy(rows) for rows in joined]


def fields_of(
    measurements: Sequence[Measurement], passes: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """What S forward passes found of each array; see `activations.measuring.fields_of`."""
    found: list[dict[str, np.ndarray]] = [{} for _ in measurements]
    of_groups = zip(_groups(measurements), zip(*passes, strict=True), strict=True)
    for (layout, members), rows in of_groups:
        lengths = _field_lengths(layout.channels)
        ends = np.cumsum(list(lengths.values()))[:-1]
        stacked = np.stack(rows, axis=1)
        for number, row in zip(members, stacked, strict=True):
            for name, part in zip(lengths, np.split(row, ends, axis=1), strict=True):
                found[number][name] = part if "histogram" in name else part.view(np.float32)
    return found
