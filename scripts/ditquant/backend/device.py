"""What this machine computes on, and how much memory it took."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np

from .blas import BLAS


def is_accelerated() -> bool:
    """True on Metal or CUDA; False where MLX computes on the CPU."""
    return mx.default_device().type == mx.DeviceType.gpu


def backend_name() -> str:
    """Where MLX computes: "cpu", "metal" or "cuda"."""
    if not is_accelerated():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def describe_device() -> str:
    """One line for the log: device, MLX version and the BLAS that serves."""
    version = getattr(mx, "__version__", "unknown")
    kind = "GPU" if is_accelerated() else "CPU"
    return f"mlx {version} on {kind} ({platform.system()} {platform.machine()}), BLAS: {BLAS.name}"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`mx.compile(function)` where that works: on the CPU MLX calls g++ to build the fused kernels.

    Without a compiler on the PATH the function runs eagerly: slower, same mathematics.
    """
    if not is_accelerated() and platform.system() == "Linux" and shutil.which("g++") is None:
        return function
    return mx.compile(function)


def peak_memory_bytes() -> int:
    """Peak bytes that MLX's allocator held since `reset_peak_memory`."""
    return int(mx.get_peak_memory())


def reset_peak_memory() -> None:
    mx.reset_peak_memory()


def to_numpy(array: mx.array) -> np.ndarray:
    """Host copy; bfloat16, which numpy lacks, becomes float32."""
    if array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    return np.array(array)


def device_vectors(values: Sequence[float | np.ndarray]) -> list[mx.array]:
    """float32 vectors for large kernels, of one number or of all numbers of an array each; lazy.

    MLX on CUDA keeps what comes from the host, and every array of at most 8 bytes, in memory that
    both share, and all of a GPU's processors wait for it: a product of 3 million values with a
    scalar there takes 26 us on an H200, and 10 us where the scalar is a view of a longer array that
    was computed on the device, as it is here (benchmarks/results/activation_time.md).
    """
    if not values:
        return []
    ends = list(accumulate(np.size(value) for value in values))
    joined = np.empty(ends[-1], dtype=np.float32)
    for value, start, end in zip(values, [0, *ends], ends, strict=False):
        joined[start:end] = np.ravel(value) if isinstance(value, np.ndarray) else value
    # Joined, because that is computed into new memory; the zeros are enough for the smallest array.
    together = mx.concatenate([mx.array(joined), mx.zeros(2)])
    return mx.split(together, ends)[:-1]


def device_arrays(values: Sequence[float | np.ndarray]) -> list[mx.array]:
    """`device_vectors` of the values' own shapes, () for a number."""
    vectors = device_vectors(values)
    return [vector.reshape(np.shape(value)) for value, vector in zip(values, vectors, strict=True)]
