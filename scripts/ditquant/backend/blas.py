"""A real BLAS for MLX on the Linux CPU, in place by `pip install` alone.

The Linux CPU wheels of mlx bundle the reference BLAS (4 GFLOP/s). A library that exports
`cblas_sgemm` and is loaded with RTLD_GLOBAL *before* the first `import mlx` takes over its symbol:
170 GFLOP/s with MKL on two cores. numpy's and scipy's own OpenBLAS cannot serve, their symbols
are prefixed. Nothing is done on macOS (Accelerate) or where MLX runs on CUDA or links a real BLAS.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass
class Blas:
    """Which BLAS serves MLX's CPU matrix products: a name for the log, and the library's path."""

    name: str = "not chosen yet"
    path: str | None = None


BLAS = Blas()

# Debian and conda names; MKL comes first because `pip install mkl` puts it beside the interpreter.
_CANDIDATES = (
    ("MKL", Path(sys.prefix) / "lib", "libmkl_rt.so*"),
    ("OpenBLAS", Path(sys.prefix) / "lib", "libopenblas*.so*"),
    ("OpenBLAS", Path("/usr/lib/x86_64-linux-gnu/openblas-pthread"), "libopenblas*.so*"),
    ("OpenBLAS", Path("/usr/lib/aarch64-linux-gnu/openblas-pthread"), "libopenblas*.so*"),
)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def preload_blas() -> Blas:
    """Loads the first BLAS found and records it in `BLAS`; called once, before `import mlx`.

    `MKL_CBWR` asks MKL for the same bits on every run (its kernels otherwise depend on how memory
    happens to be aligned, and on the number of threads); measured at no cost on AVX2. Two runs of a
    job must agree exactly. `KMP_BLOCKTIME` keeps idle threads from spinning on a core that another
    job could use: between two products MLX computes on one thread for longer than they take.
    """
    if platform.system() != "Linux":
        BLAS.name = "Accelerate"
    elif "mlx.core" in sys.modules:
        BLAS.name = "bundled with mlx (mlx was imported before ditquant)"
    elif any(_is_installed(name) for name in ("mlx-cuda-13", "mlx-cuda-12")):
        BLAS.name = "CUDA"
        # MLX would multiply float32 there with ten bits of mantissa, as many as float16 has.
        os.environ.setdefault("MLX_ENABLE_TF32", "0")
    else:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
        os.environ.setdefault("KMP_BLOCKTIME", "0")
        # The loader of mkl_rt prefers Intel's own OpenMP, which `pip install mkl` brings along.
        for name, folder, pattern in _CANDIDATES:
            for path in sorted(folder.glob(pattern)):
                try:
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    continue
                BLAS.name, BLAS.path = name, str(path)
                return BLAS
        BLAS.name = "bundled with mlx (slow: `pip install mkl`, or install OpenBLAS)"
    return BLAS
