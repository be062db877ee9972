"""The files of a recipe's blocks: packed weights, tuned grids, balanced parameters.

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

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx
from .grids import Packed

BLOCK_WEIGHTS = "ditquant.block_weights"
TUNED_WEIGHTS = "ditquant.tuned_weights"
_PARAMETERS = "parameters."


def packed_of(name: str, tensors: Mapping[str, mx.array], size: Mapping[str, Any]) -> Packed:
    """The weight that `tensors` hold as "<name>.weight", ".scales" and ".biases".

    Args:
        size: with "bits" and "group_size", as the file or the checkpoint has them.
    """
    weight, scales, biases = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    return Packed(weight, scales, biases, size["bits"], size["group_size"])


def write_block(
    file: str | Path,
    block: str,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
    activations: Mapping[str, tuple[float, float]],
) -> None:
    """Writes what a block's job made (`quantize_block.BlockResult`)."""
    tensors = {
        f"{name}.{part}": getattr(weight, part)
        for name, weight in packed.items()
        for part in ("weight", "scales", "biases")
    }
    tensors |= {f"{_PARAMETERS}{path}": array for path, array in parameters.items()}
    sizes = {
        name: {"bits": weight.bits, "group_size": weight.group_size}
        for name, weight in packed.items()
    }
    metadata = {"block": block, "quantization": sizes, "activations": activations}
    save_tensors(file, tensors, BLOCK_WEIGHTS, metadata)


def write_tuned(file: str | Path, packed: Mapping[str, Packed]) -> None:
    """Writes the grids of a tuned network, for `read_tuned`."""
    tensors = {
        f"{name}.{part}": getattr(weight, part)
        for name, weight in packed.items()
        for part in ("scales", "biases")
    }
    save_tensors(file, tensors, TUNED_WEIGHTS)


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
    return {
        name.removeprefix(_PARAMETERS): tensors[name]
        for tensors in (load_tensors(file, BLOCK_WEIGHTS) for file in files)
        for name in tensors
        if name.startswith(_PARAMETERS)
    }
