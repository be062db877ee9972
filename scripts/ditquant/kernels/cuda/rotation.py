"""Rotating what a linear reads by one CUDA kernel: signs, Hadamard transform and rounding at once.

`mx.hadamard_transform` behind a product with the signs is two kernels and four operations for the
host, which prepares a forward pass of SD3-medium more slowly than an H200 computes it. Sums are
taken in float32 and rounded once, so results agree with `weights.rotation`'s to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ...backend import compiled, mx
from .launching import cuda_kernel

_THREADS = 256
_WARP = 32

# LANES neighbouring threads for each group of LANES * N adjacent channels.
_SOURCE = """
    using Vector = Values<T, N>;
    const unsigned int thread = blockIdx.x * blockDim.x + threadIdx.x;
    // Every thread of a warp takes part in the sums.
    const bool inside = thread < VECTORS;
    const int channel = (thread % (CHANNELS / N)) * N;
    Vector values;
    float y[N];
    if (inside) values = reinterpret_cast<const Vector*>(x)[thread];
    #pragma unroll
    for (int j = 0; j < N; j++) y[j] = inside ? float(values.value[j]) * signs[channel + j] : 0.0f;
    #pragma unroll
    for (int half = 1; half < N; half *= 2) {
        #pragma unroll
        for (int j = 0; j < N; j++) {
            if (j & half) continue;
            const float a = y[j], b = y[j + half];
            y[j] = a + b;
            y[j + half] = a - b;
        }
    }
    #pragma unroll
    for (int distance = 1; distance < LANES; distance *= 2) {
        #pragma unroll
        for (int j = 0; j < N; j++) {
            const float other = __shfl_xor_sync(0xffffffffu, y[j], distance);
            y[j] = (threadIdx.x & distance) ? other - y[j] : y[j] + other;
        }
    }
    const float factor = 1.0f / sqrtf(float(LANES * N));
    if (inside) {
        #pragma unroll
        for (int j = 0; j < N; j++) values.value[j] = T(y[j] * factor);
        reinterpret_cast<Vector*>(out)[thread] = values;
    }
"""


def together(size: int, dtype: mx.Dtype) -> int:
    """How many values a thread has: 16 bytes, less where a group is shorter, and more where the
    threads of a warp would not hold a group."""
    return max(min(16 // dtype.size, size), size // _WARP)


def launch(x: mx.array, signs: mx.array, size: int) -> mx.array:
    """H x; see `weights.rotation.rotated`.

    Args:
        x: (..., channels) of any float dtype.
        signs: (channels,) float32.
        size: of the Hadamard matrix.
    """
    count = together(size, x.dtype)
    vectors = x.size // count
    (out,) = cuda_kernel("rotate", _SOURCE, ("x", "signs"))(
        inputs=[x, signs],
        template=[
            ("T", x.dtype),
            ("N", count),
            ("LANES", size // count),
            ("VECTORS", vectors),
            ("CHANNELS", x.shape[-1]),
        ],
        grid=(-(-vectors // _THREADS) * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


@cache
def rotation_of_size(
    size: int, turned_back: Callable[[mx.array, int], mx.array]
) -> Callable[[mx.array, mx.array], mx.array]:
    """Of (x, signs); differentiable in x.

    Args:
        turned_back: (y, size) -> H^T y, for gradients.
    """

    @mx.custom_function
    def rotate(x: mx.array, signs: mx.array) -> mx.array:
        return launch(x, signs, size)

    @rotate.vjp
    def gradient(
        primals: list[mx.array], slope: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array]:
        return turned_back(slope, size), mx.zeros_like(primals[1])

    return compiled(rotate)
