"""The platform: the only place that knows what MLX and DiffusionKit need to run.

Every other module imports `mx` and `nn` from here, because a real BLAS must be loaded before the
first `import mlx`.

blas            a real BLAS for the Linux CPU
diffusionkit    DiffusionKit without what it does not need here
compile_cache   where MLX keeps what it compiles
device          what MLX computes on, and arrays for it
vector          functions in a form that a CPU vectorises
"""

from __future__ import annotations

from .blas import BLAS, preload_blas

preload_blas()

import mlx.core as mx
import mlx.nn as nn

from .compile_cache import COMPILE_CACHE, compile_advice, use_own_folder
from .device import (
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
from .diffusionkit import hub_files, import_diffusionkit, with_names
from .vector import normal_cdf, normal_density, polynomial

use_own_folder(try_compiling, mx.disable_compile)
