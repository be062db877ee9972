"""The device that this machine computes on, and the memory that was used."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .blas import BLAS
from .compile_cache import COMPILE_CACHE

# The highest peak before a reset.
_highest = 0


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
    line = f"mlx {version} on {kind} ({platform.system()} {platform.machine()}), BLAS: {BLAS.name}"
    if COMPILE_CACHE.problem is None:
        return line
    return (
        f"{line}. Slower, since MLX can compile nothing ({COMPILE_CACHE.problem}): set "
        "XDG_CACHE_HOME to a folder of your own where programs may run"
    )


def try_compiling() -> None:
    """Compiles a small function and runs it, on the CPU; on other devices MLX needs no folder.

    Raises:
        RuntimeError: MLX could not compile it, or not load what was compiled.
    """
    if is_accelerated():
        return
    mx.eval(mx.compile(lambda x: 1 + 2 * x)(mx.zeros(1)))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`mx.compile(function)` where that works: on the CPU MLX calls g++ to build the fused kernels.

    Without a compiler on the PATH, or a folder for what it makes (`kernels`), the function runs
    eagerly: slower, same mathematics.
    """
    if not is_accelerated() and platform.system() == "Linux" and shutil.which("g++") is None:
        return function
    return mx.compile(function)


def peak_memory_bytes() -> int:
    """Peak bytes that MLX's allocator held since `reset_peak_memory`."""
    return int(mx.get_peak_memory())


def reset_peak_memory() -> None:
    global _highest
    _highest = highest_memory_bytes()
    mx.reset_peak_memory()


def highest_memory_bytes() -> int:
    """Peak bytes that MLX's allocator held since the process began, whatever was reset."""
    return max(_highest, peak_memory_bytes())


def to_numpy(array: mx.array) -> np.ndarray:
    """Host copy; bfloat16, which numpy lacks, becomes float32."""
    if array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    return np.array(array)


def device_arrays(
    values: Sequence[float | np.ndarray], dtype: mx.Dtype = mx.float32
) -> list[mx.array]:
    """Arrays of the values' shapes for large kernels, lazy.

    MLX on CUDA keeps what comes from the host, and every array of at most 8 bytes, in memory that
    both share, and all of a GPU's processors wait for it: a product of 3 million values with a
    scalar there takes 26 us on an H200, and 10 us where the scalar is a view of a longer array that
    was computed on the device, as it is here (benchmarks/results/activation_time.md).
    """
    parts = [np.asarray(value) for value in values]
    shared = mx.array(np.concatenate([part.reshape(-1) for part in parts]), dtype=dtype)
    # Joined, because that is computed into new memory; the zeros are enough for the smallest array.
    together = mx.concatenate([shared, mx.zeros(2, dtype)])
    views = mx.split(together, np.cumsum([part.size for part in parts]).tolist())
    return [
        view if part.ndim == 1 else view.reshape(part.shape)
        for part, view in zip(parts, views[:-1], strict=True)
    ]


# Of a floating type: integers of its width, signed and not, and the bits of its infinity.
_BITS = {
    mx.float16: (np.int16, np.uint16, 0x7C00),
    mx.bfloat16: (np.int16, np.uint16, 0x7F80),
    mx.float32: (np.int32, np.uint32, 0x7F800000),
}


def _is_finite(array: mx.array) -> bool:
    """By the bits: NaN and the infinities are the largest integers of either sign.

    MLX's `isfinite` takes 20 times as long on a CPU.
    """
    if array.dtype not in _BITS or array.size == 0:
        return True
    signed, unsigned, infinity = _BITS[array.dtype]
    bits = np.array(array.view(mx.uint32 if array.dtype == mx.float32 else mx.uint16), copy=False)
    negative = infinity + 2 ** (8 * bits.itemsize - 1)
    return bool(bits.view(signed).max() < infinity and bits.view(unsigned).max() < negative)


def are_finite(arrays: Sequence[mx.array]) -> list[bool]:
    """Evaluates arrays, and says of each whether it holds neither NaN nor infinity.

    The device is waited for once.
    """
    if not is_accelerated():
        mx.eval(arrays)
        return [_is_finite(array) for array in arrays]
    flags = [mx.all(mx.isfinite(array)) for array in arrays]
    mx.eval(arrays, flags)
    return [bool(flag.item()) for flag in flags]
