"""Statistics of what a linear reads, on CUDA: one kernel that reads the array once.

`mx.compile` joins elementwise operations and stops at each of the reductions, so that MLX reads an
array six times, and counts by additions to memory that all processors share. Here each block of
threads takes some channels of some rows, and counts in its own memory. What the blocks found is put
together once a forward pass, for many arrays by one kernel.

Sums are taken in a fixed order, so that a second run gives the same bits; they may differ from
`measuring`'s in the last place. Everything else is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .backend import compiled, mx, to_numpy
from .histogram import BIN_NUMBER_CUDA, NUM_BINS

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

_HEADER = f"""
template <typename T, int N>
struct alignas(sizeof(T) * N) Values {{ T value[N]; }};

{BIN_NUMBER_CUDA}
"""

# What a block found lies in `out`, floats by their bits:
#   columns  (SLABS, 3, CHANNELS)  minimum, maximum and sum of each channel over the slab's rows
#   squares  (SLABS * CHUNKS,)     sums of squares
#   counts   (SLABS * CHUNKS, BINS)
#   tokens   (CHUNKS, ROWS)        each row's largest |x| in the block's channels
_OFFSETS = """
    const float INFINITE = __int_as_float(0x7f800000);
    const int CHUNKS = CHANNELS / (VECTORS * N), PARTS = SLABS * CHUNKS;
    const size_t SQUARES = size_t(SLABS) * 3 * CHANNELS;
    const size_t COUNTS = SQUARES + PARTS, TOKENS = COUNTS + size_t(PARTS) * BINS;
"""

_MEASURE = (
    _OFFSETS
    + """
    const int WARPS = THREADS / 32, ROWS_AT_ONCE = THREADS / VECTORS, WIDTH = VECTORS * N;
    __shared__ int counts[WARPS][BINS];
    __shared__ float lows[WARPS][WIDTH], highs[WARPS][WIDTH], sums[WARPS][WIDTH], squared[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, vector = threadIdx.x % VECTORS;
    const int chunk = blockIdx.x, slab = blockIdx.y, part = slab * CHUNKS + chunk;
    for (int i = threadIdx.x; i < WARPS * BINS; i += THREADS) (&counts[0][0])[i] = 0;
    __syncthreads();

    float low[N], high[N], sum[N], squares = 0.0f;
    #pragma unroll
    for (int j = 0; j < N; j++) { low[j] = INFINITE; high[j] = -INFINITE; sum[j] = 0.0f; }
    const int end = min(ROWS, (slab + 1) * SLAB_ROWS);
    for (int first = slab * SLAB_ROWS; first < end; first += ROWS_AT_ONCE) {
        const int row = first + threadIdx.x / VECTORS;
        float largest = 0.0f;
        if (row < end) {
            const size_t at = (size_t(row) * CHANNELS + chunk * WIDTH) / N + vector;
            const auto values = reinterpret_cast<const Values<T, N>*>(x)[at];
            #pragma unroll
            for (int j = 0; j < N; j++) {
                const float value = float(values.value[j]);
                low[j] = fminf(low[j], value);
                high[j] = fmaxf(high[j], value);
                sum[j] += value;
                squares += value * value;
                largest = fmaxf(largest, fabsf(value));
                atomicAdd(&counts[warp][bin_number(value)], 1);
            }
        }
        // Every thread of a warp takes part, with a row or without.
        for (int distance = VECTORS / 2; distance > 0; distance /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        if (row < end && vector == 0)
            out[TOKENS + size_t(chunk) * ROWS + row] = __float_as_int(largest);
    }

    #pragma unroll
    for (int j = 0; j < N; j++) {
        for (int distance = 16; distance >= VECTORS; distance /= 2) {
            low[j] = fminf(low[j], __shfl_xor_sync(0xffffffffu, low[j], distance));
            high[j] = fmaxf(high[j], __shfl_xor_sync(0xffffffffu, high[j], distance));
            sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], distance);
        }
        if (lane < VECTORS) {
            lows[warp][vector * N + j] = low[j];
            highs[warp][vector * N + j] = high[j];
            sums[warp][vector * N + j] = sum[j];
        }
    }
    for (int distance = 16; distance > 0; distance /= 2)
        squares += __shfl_xor_sync(0xffffffffu, squares, distance);
    if (lane == 0) squared[warp] = squares;
    __syncthreads();

    for (int i = threadIdx.x; i < WIDTH; i += THREADS) {
        float lowest = lows[0][i], highest = highs[0][i], total = sums[0][i];
        for (int w = 1; w < WARPS; w++) {
            lowest = fminf(lowest, lows[w][i]);
            highest = fmaxf(highest, highs[w][i]);
            total += sums[w][i];
        }
        int* column = out + size_t(slab) * 3 * CHANNELS + chunk * WIDTH + i;
        column[0] = __float_as_int(lowest);
        column[CHANNELS] = __float_as_int(highest);
        column[2 * CHANNELS] = __float_as_int(total);
    }
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        int total = 0;
        for (int w = 0; w < WARPS; w++) total += counts[w][bin];
        out[COUNTS + size_t(part) * BINS + bin] = total;
    }
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int w = 0; w < WARPS; w++) total += squared[w];
        out[SQUARES + part] = __float_as_int(total);
    }
"""
)

# A row of `out` for each array: minimum, maximum and sum of each channel, the sum of squares, the
# counts of |x|, and those of the tokens' largest.
_JOIN = (
    _OFFSETS
    + """
    const int* from = part_0;
    {choices}
    int* row = out + size_t(blockIdx.y) * (3 * CHANNELS + 1 + 2 * BINS);
    __shared__ int counts[BINS];
    const int thread = threadIdx.x;
    if (blockIdx.x == 0) {{
        for (int bin = thread; bin < BINS; bin += THREADS) counts[bin] = 0;
        __syncthreads();
        for (int token = thread; token < ROWS; token += THREADS) {{
            int largest = 0;
            #pragma unroll 8
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                largest = max(largest, from[TOKENS + size_t(chunk) * ROWS + token]);
            atomicAdd(&counts[bin_number(__int_as_float(largest))], 1);
        }}
        __syncthreads();
        for (int bin = thread; bin < BINS; bin += THREADS)
            row[3 * CHANNELS + 1 + BINS + bin] = counts[bin];
        if (thread < 32) {{
            float total = 0.0f;
            for (int part = thread; part < PARTS; part += 32)
                total += __int_as_float(from[SQUARES + part]);
            for (int distance = 16; distance > 0; distance /= 2)
                total += __shfl_xor_sync(0xffffffffu, total, distance);
            if (thread == 0) row[3 * CHANNELS] = __float_as_int(total);
        }}
    }} else if (blockIdx.x <= BIN_BLOCKS) {{
        const int here = thread % BINS_OF_BLOCK;
        const int bin = (blockIdx.x - 1) * BINS_OF_BLOCK + here;
        if (thread < BINS_OF_BLOCK) counts[here] = 0;
        __syncthreads();
        int total = 0;
        if (bin < BINS) {{
            #pragma unroll 8
            for (int part = thread / BINS_OF_BLOCK; part < PARTS; part += THREADS / BINS_OF_BLOCK)
                total += from[COUNTS + size_t(part) * BINS + bin];
        }}
        atomicAdd(&counts[here], total);
        __syncthreads();
        if (thread < BINS_OF_BLOCK && bin < BINS) row[3 * CHANNELS + 1 + bin] = counts[here];
    }} else {{
        const int channel = (blockIdx.x - 1 - BIN_BLOCKS) * THREADS + thread;
        if (channel >= CHANNELS) return;
        float lowest = INFINITE, highest = -INFINITE, total = 0.0f;
        for (int slab = 0; slab < SLABS; slab++) {{
            const int* column = from + size_t(slab) * 3 * CHANNELS + channel;
            lowest = fminf(lowest, __int_as_float(column[0]));
            highest = fmaxf(highest, __int_as_float(column[CHANNELS]));
            total += __int_as_float(column[2 * CHANNELS]);
        }}
        row[channel] = __float_as_int(lowest);
        row[CHANNELS + channel] = __float_as_int(highest);
        row[2 * CHANNELS + channel] = __float_as_int(total);
    }}
"""
)


def joining_source(arrays: int) -> str:
    """The source of the kernel that puts together what was found of so many arrays."""
    choices = "\n    ".join(
        f"if (blockIdx.y == {array}) from = part_{array};" for array in range(1, arrays)
    )
    return _JOIN.format(choices=choices)


@cache
def _kernel(name: str, source: str, inputs: tuple[str, ...]) -> Any:
    return mx.fast.cuda_kernel(
        name=f"ditquant_{name}",
        input_names=list(inputs),
        output_names=["out"],
        source=source,
        header=_HEADER,
    )


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
        kernel = _kernel("measure", _MEASURE, ("x",))
        constants = [*layout.constants, ("SLAB_ROWS", layout.slab_rows), ("THREADS", _THREADS)]
        (out,) = kernel(
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
    """How many numbers each field has in a joined row, in their order."""
    of_channels = dict.fromkeys(("channel_min", "channel_max", "channel_sum"), channels)
    counts = dict.fromkeys(("histogram", "token_histogram"), NUM_BINS)
    return {**of_channels, "square_sum": 1, **counts}


@cache
def _joining(layout: _Layout, count: int) -> Callable[..., mx.array]:
    """Of so many arrays' `found`: (count, a joined row) int32, see `_JOIN`."""
    names = tuple(f"part_{array}" for array in range(count))
    blocks = 1 + _BIN_BLOCKS + -(-layout.channels // _JOINING_THREADS)
    constants = [
        *layout.constants,
        ("THREADS", _JOINING_THREADS),
        ("BINS_OF_BLOCK", _BINS_OF_BLOCK),
        ("BIN_BLOCKS", _BIN_BLOCKS),
    ]

    def joined(*found: mx.array) -> mx.array:
        (out,) = _kernel(f"join_{count}", joining_source(count), names)(
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
    """One forward pass's numbers, for `fields_of`: the joined rows of each group; see `_JOIN`."""
    joined = [
        _joining(layout, len(members))(*(measurements[number].found for number in members))
        for layout, members in _groups(measurements)
    ]
    mx.eval(joined)
    return [to_numpy(rows) for rows in joined]


def fields_of(
    measurements: Sequence[Measurement], passes: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """What S forward passes found of each array; see `measuring.fields_of`."""
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
