"""What the jobs of a recipe's blocks wrote: packed weights, tuned grids, balanced parameters.

A block's file holds "<linear>.weight", ".scales" and ".biases" of each quantized linear, whose bits
and group size stand in the metadata ("quantization"), and "parameters.<path>" of each parameter
that balancing changed. Tuning writes only ".scales" and ".biases", for the same codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..artifacts import load_metadata, load_tensors
from ..backend import mx
from .grids import Packed

BLOCK_WEIGHTS = "ditquant.block_weights"
TUNED_WEIGHTS = "ditquant.tuned_weights"


def packed_of(name: str, tensors: Mapping[str, mx.array], size: Mapping[str, Any]) -> Packed:
    """The weight that `tensors` hold as "<name>.weight", ".scales" and ".biases".

    Args:
        size: with "bits" and "group_size".
    """
    return Packed(
        weight=tensors[f"{name}.weight"],
        scales=tensors[f"{name}.scales"],
        biases=tensors[f"{name}.biases"],
        bits=size["bits"],
        group_size=size["group_size"],
    )


def read_packed(files: Sequence[str | Path]) -> dict[str, Packed]:
    """Linear's name -> quantized weight, from the files of `optimize_block`."""
    packed = {}
    for file in files:
        tensors = load_tensors(file, BLOCK_WEIGHTS)
        sizes = json.loads(load_metadata(file, BLOCK_WEIGHTS)["quantization"])
        for name, size in sizes.items():
            packed[name] = packed_of(name, tensors, size)
    return packed


def read_tuned(file: str | Path, packed: Mapping[str, Packed]) -> dict[str, Packed]:
    """The same codes on the grids that `tune_weights` wrote: "<name>.scales" and ".biases"."""
    tensors = load_tensors(file, TUNED_WEIGHTS)
    return {
        name: replace(weight, scales=tensors[f"{name}.scales"], biases=tensors[f"{name}.biases"])
        for name, weight in packed.items()
    }


def read_parameters(files: Sequence[str | Path]) -> dict[str, mx.array]:
    """Module path -> full-precision parameter that balancing changed, from the same files."""
    prefix = "parameters."
    return {
        name.removeprefix(prefix): tensors[name]
        for tensors in (load_tensors(file, BLOCK_WEIGHTS) for file in files)
        for name in tensors
        if name.startswith(prefix)
    }
