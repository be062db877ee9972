"""The platform room: the only place that knows what MLX and DiffusionKit need to run.

Every other module takes `mx` and `nn` from here, because what is done on import (a real BLAS
before the first `import mlx`) only works when it happens first.

blas            a real BLAS for the Linux CPU
diffusionkit    DiffusionKit without what it does not need here
compile_cache   where MLX keeps what it compiles
device          what MLX computes on, and arrays for it
vector          functions in a form that a CPU vectorises
"""

from __future__ import annotations

from .blas import BLAS, preload_blas

preload_blas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402

from .compile_cache import COMPILE_CACHE, compile_advice, use_own_folder  # noqa: E402
from .device import (  # noqa: E402
    are_finite,
    backend_name,
    compiled,
    describe_device,
    device_arrays,
    highest_memory_bytes,
    is_accelerated,
    peak_memory_bytes,
    reset_peak_memory,
    to_numpy,
    try_compiling,
)
from .diffusionkit import hub_files, import_diffusionkit, with_names  # noqa: E402
from .vector import normal_cdf, normal_density, polynomial  # noqa: E402

use_own_folder(try_compiling, mx.disable_compile)

__all__ = [
    "BLAS",
    "COMPILE_CACHE",
    "are_finite",
    "backend_name",
    "compile_advice",
    "compiled",
    "describe_device",
    "device_arrays",
    "highest_memory_bytes",
    "hub_files",
    "import_diffusionkit",
    "is_accelerated",
    "mx",
    "nn",
    "normal_cdf",
    "normal_density",
    "peak_memory_bytes",
    "polynomial",
    "reset_peak_memory",
    "to_numpy",
    "with_names",
]
