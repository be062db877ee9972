"""Fake quantization with ranges found at run time, on CUDA: one kernel instead of up to four.

On an H200 the host prepares a forward pass of SD3-medium more slowly than the device computes it,
so each kernel less counts twice. The formulas are those of `fake_quantization`, and so are the
results: the same operations in float32, rounded alike.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .backend import cuda_kernel, mx
from .intervals import SMALLEST_RANGE

_THREADS = 256
# Of an entry of the batch, each with a maximum of its own.
_PARTS = 64

_HEADER = f"""
// One number for all channels (COUNT 1), or one for each.
template <int COUNT>
__device__ float number(const float* of, int channel) {{
    return of[COUNT > 1 ? channel : 0];
}}

// The largest value that any of WIDTH neighbouring threads has; a power of 2, at most 32.
template <int WIDTH>
__device__ float largest_of(float value) {{
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance, WIDTH));
    return value;
}}

__device__ float scale_of(float largest, float high) {{
    return fmaxf(largest, {SMALLEST_RANGE!r}f) / high;
}}

template <int SHIFTS, typename T, int N>
__device__ float largest_in(const Values<T, N>& x, const float* shift, int first) {{
    float largest = 0.0f;
    #pragma unroll
    for (int j = 0; j < N; j++)
        largest = fmaxf(largest, fabsf(float(x.value[j]) - number<SHIFTS>(shift, first + j)));
    return largest;
}}

template <int SHIFTS, typename T, int N>
__device__ Values<T, N> quantized(
    Values<T, N> x, float s, const float* shift, int first, float low, float high
) {{
    #pragma unroll
    for (int j = 0; j < N; j++) {{
        const float z = number<SHIFTS>(shift, first + j);
        const float code = fminf(fmaxf(rintf((float(x.value[j]) - z) / s), low), high);
        x.value[j] = T(code * s + z);
    }}
    return x;
}}
"""

# LANES threads for each LENGTH adjacent channels of a token, which share a scale; a thread reads N
# values at once.
_TOKENS = """
    using Vector = Values<T, N>;
    const unsigned int thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int part = thread / LANES;
    // Every thread of a warp takes part in finding the largest value.
    const int count = part < PARTS ? LENGTH / N : 0;
    const int channel = (part % (CHANNELS / LENGTH)) * LENGTH;
    const size_t at = size_t(part) * (LENGTH / N);
    const auto* from = reinterpret_cast<const Vector*>(x) + at;
    auto* to = reinterpret_cast<Vector*>(out) + at;
    float largest = 0.0f;
    #pragma unroll 4
    for (int i = thread % LANES; i < count; i += LANES)
        largest = fmaxf(largest, largest_in<SHIFTS>(from[i], shift, channel + i * N));
    const float s = scale_of(largest_of<LANES>(largest), high[0]);
    #pragma unroll 4
    for (int i = thread % LANES; i < count; i += LANES)
        to[i] = quantized<SHIFTS>(from[i], s, shift, channel + i * N, low[0], high[0]);
"""

# The largest |x - z| of each of PARTS parts of an entry of the batch, by a block of threads each.
# An entry has COUNT times N values.
_EXTREMES = """
    using Vector = Values<T, N>;
    __shared__ float of_warps[THREADS / 32];
    const unsigned int entry = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
    const auto* from = reinterpret_cast<const Vector*>(x) + size_t(entry) * COUNT;
    float largest = 0.0f;
    for (unsigned int i = part * THREADS + threadIdx.x; i < COUNT; i += PARTS * THREADS)
        largest = fmaxf(largest, largest_in<SHIFTS>(from[i], shift, (i % (CHANNELS / N)) * N));
    largest = largest_of<32>(largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    if (threadIdx.x < 32) {
        largest = largest_of<32>(threadIdx.x < THREADS / 32 ? of_warps[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) out[blockIdx.x] = largest;
    }
"""

_ENTRIES = """
    using Vector = Values<T, N>;
    const unsigned int i = blockIdx.x * blockDim.x + threadIdx.x, entry = blockIdx.y;
    float largest = 0.0f;
    for (int part = threadIdx.x % 32; part < PARTS; part += 32)
        largest = fmaxf(largest, extremes[entry * PARTS + part]);
    const float s = scale_of(largest_of<32>(largest), high[0]);
    if (i < COUNT) {
        const size_t at = size_t(entry) * COUNT + i;
        const int channel = (i % (CHANNELS / N)) * N;
        reinterpret_cast<Vector*>(out)[at] = quantized<SHIFTS>(
            reinterpret_cast<const Vector*>(x)[at], s, shift, channel, low[0], high[0]);
    }
"""


def _together(dtype: mx.Dtype, length: int) -> int:
    """How many of `length` adjacent values a thread reads at once: 16 bytes, if that divides it."""
    most = 16 // dtype.size
    return most if length % most == 0 else 1


def _whole_blocks(threads: int) -> int:
    return -(-threads // _THREADS) * _THREADS


def _launch(
    kernel: Any,
    inputs: list[mx.array],
    sizes: dict[str, int],
    grid: tuple[int, int],
    shape: tuple[int, ...],
    dtype: mx.Dtype,
) -> mx.array:
    """The kernel's only output. `T` is the dtype of the first input, `grid` is in threads."""
    (out,) = kernel(
        inputs=inputs,
        template=[("T", inputs[0].dtype), *sizes.items()],
        grid=(*grid, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )
    return out


def quantize_tokens(
    x: mx.array, shift: mx.array, low: mx.array, high: mx.array, length: int | None = None
) -> mx.array:
    """Fake-quantizes each token, or each `length` adjacent channels of one, with its own scale.

    Args:
        x: (..., channels) of any float dtype.
        shift: () or (channels,) float32.
        low, high: () float32, the extreme codes.
    """
    channels = x.shape[-1]
    length = length or channels
    together = _together(x.dtype, length)
    lanes = 1
    while lanes < 32 and 2 * lanes * together <= length:
        lanes *= 2
    parts = x.size // length
    sizes = {
        "N": together, "LANES": lanes, "PARTS": parts,
        "CHANNELS": channels, "LENGTH": length, "SHIFTS": shift.size,
    }  # fmt: skip
    kernel = cuda_kernel("tokens", _TOKENS, ("x", "shift", "low", "high"), _HEADER)
    grid = (_whole_blocks(parts * lanes), 1)
    return _launch(kernel, [x, shift, low, high], sizes, grid, x.shape, x.dtype)


def quantize_entries(x: mx.array, shift: mx.array, low: mx.array, high: mx.array) -> mx.array:
    """Fake-quantizes each entry of the batch with a scale of its own; see `quantize_tokens`.

    Args:
        x: (batch, ..., channels).
    """
    entries, channels = x.shape[0], x.shape[-1]
    together = _together(x.dtype, channels)
    count = prod(x.shape[1:]) // together
    sizes = {
        "N": together, "COUNT": count, "PARTS": _PARTS, "THREADS": _THREADS,
        "CHANNELS": channels, "SHIFTS": shift.size,
    }  # fmt: skip
    finding = cuda_kernel("extremes", _EXTREMES, ("x", "shift"), _HEADER)
    grid = (entries * _PARTS * _THREADS, 1)
    extremes = _launch(finding, [x, shift], sizes, grid, (entries, _PARTS), mx.float32)
    rounding = cuda_kernel("entries", _ENTRIES, ("x", "extremes", "shift", "low", "high"), _HEADER)
    grid = (_whole_blocks(count), entries)
    return _launch(rounding, [x, extremes, shift, low, high], sizes, grid, x.shape, x.dtype)
