"""Tensors of a checkpoint that others made: float8 as what it is, and nothing that is not finite.

MLX reads float8 as bytes (E4M3) or not at all (E5M2), and whole numbers as if they were weights.
Here float8 becomes its values, multiplied by the scales that user interfaces store beside it:

    <layer>.weight          F8_E4M3 or F8_E5M2
    <layer>.scale_weight    float, one value or one a row: ComfyUI's older name
    <layer>.weight_scale    the same in its newer files and in diffusers
    <layer>.scale_input, <layer>.input_scale    of activations, which are not quantized here
    <layer>.comfy_quant, scaled_fp8             marks of the format

(https://github.com/comfyanonymous/ComfyUI, QUANTIZATION.md and comfy/utils.py.) Weights of any
other type are refused by name: they are codes whose meaning is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..backend import are_finite, mx
from ..errors import UserError
from .files import Stored, advice, read_header

_SCALES = ("scale_weight", "weight_scale")
# Ends of names that are no weights, and that no loader of DiffusionKit knows.
_IGNORED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", ".position_ids")
_FLOATS = {"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}


def e4m3_values(codes: mx.array) -> mx.array:
    """uint8 codes of float8 E4M3 (largest value 448, no infinity) -> float16, exact."""
    return mx.from_fp8(codes, dtype=mx.float16)


def e5m2_values(codes: mx.array) -> mx.array:
    """uint8 codes of float8 E5M2 -> float16, exact: they are its upper bytes."""
    return (codes.astype(mx.uint16) << 8).view(mx.float16)


_FLOAT8: dict[str, Callable[[mx.array], mx.array]] = {
    "F8_E4M3": e4m3_values,
    "F8_E5M2": e5m2_values,
}


def _scaled(path: Path, name: str, weight: mx.array, scale: mx.array) -> mx.array:
    """A float8 weight times its scale, in float32."""
    if scale.size != 1 and (scale.shape[:1] != weight.shape[:1] or scale.size != scale.shape[0]):
        raise UserError(
            f"{path}: {name} has shape {list(scale.shape)}, and only one scale for a weight or one "
            "for each of its rows is read. Use a checkpoint in float16, bfloat16 or float32."
        )
    column = scale.astype(mx.float32).reshape(-1, *[1] * (weight.ndim - 1))
    return weight.astype(mx.float32) * column


def _mapped(path: Path, header: Mapping[str, Stored], names: list[str]) -> dict[str, mx.array]:
    """Tensors of a file that MLX refuses, read at once; float8 as uint8."""
    data = np.memmap(path, np.uint8, "r")

    def read(stored: Stored) -> mx.array:
        values = mx.array(data[stored.begin : stored.end])
        return values.view(_FLOATS.get(stored.dtype, mx.uint8)).reshape(stored.shape)

    return {name: read(header[name]) for name in names}


def read_tensors(path: str | Path, prefix: str = "") -> dict[str, mx.array]:
    """Weights of a safetensors file by name, in floating types that MLX computes with.

    Args:
        prefix: of the names that are wanted; a file without such names is read whole.

    Returns:
        Lazy arrays, unless the file has tensors in float8 E5M2.

    Raises:
        UserError: the file is damaged, or a tensor is stored in a way that is not read here.
    """
    path, header = Path(path), read_header(path)
    wanted = [name for name in header if name.startswith(prefix)] or list(header)
    wanted = [name for name in wanted if not name.endswith(_IGNORED)]
    for name in wanted:
        if header[name].dtype not in {**_FLOATS, **_FLOAT8}:
            raise UserError(
                f"{path}: {name} is stored as {header[name].dtype}: no weight, but codes of a "
                "quantization that is not read here. Use a checkpoint in float16, bfloat16, "
                "float32 or float8."
            )
    if any(stored.dtype == "F8_E5M2" for stored in header.values()):
        tensors = _mapped(path, header, wanted)
    else:
        stored = mx.load(str(path))
        tensors = {name: stored[name] for name in wanted}
    scales = {name: tensors.pop(name) for name in wanted if name.rpartition(".")[2] in _SCALES}
    for name in tensors:
        decode = _FLOAT8.get(header[name].dtype)
        if decode is not None:
            tensors[name] = decode(tensors[name])
    for name, scale in scales.items():
        weight = f"{name.rpartition('.')[0]}.weight"
        if weight not in tensors or header[weight].dtype not in _FLOAT8:
            raise UserError(
                f"{path}: {name} scales no float8 tensor, so what it means is not known. Use a "
                "checkpoint in float16, bfloat16 or float32."
            )
        tensors[weight] = _scaled(path, name, tensors[weight], scale)
    return tensors


class Reader:
    """In the place of `mx.load` for a loader of DiffusionKit; remembers what it read.

    Args:
        prefix: see `read_tensors`.
        dtype: that the loader converts to.
    """

    def __init__(self, prefix: str, dtype: mx.Dtype):
        self._prefix, self._dtype = prefix, dtype
        self._path: Path | None = None

    def load(self, path: str) -> dict[str, mx.array]:
        self._path = Path(path)
        return read_tensors(path, self._prefix)

    def check(self, parameters: Mapping[str, mx.array]) -> None:
        """Evaluates parameters that were loaded, and checks that all their values are finite.

        Args:
            parameters: by module path; what is not among them is not read from the file.

        Raises:
            UserError: one is not; names file and tensor, and says what to do.
        """
        if not parameters:
            return
        finite = are_finite(list(parameters.values()))
        wrong = [name for name, good in zip(parameters, finite, strict=True) if not good]
        if wrong:
            raise UserError(self._explain(wrong[0]))

    def _explain(self, parameter: str) -> str:
        """Reads the file once more, tensor by tensor: what is in it, and what the dtype makes."""
        assert self._path is not None
        for name, tensor in read_tensors(self._path, self._prefix).items():
            in_file, converted = are_finite([tensor, tensor.astype(self._dtype)])
            if not in_file:
                return (
                    f"{self._path}: {name} holds values that are infinite or not a number: the "
                    f"checkpoint is damaged, or of a training that failed. {advice(self._path)}"
                )
            if not converted:
                largest = mx.max(mx.abs(tensor.astype(mx.float32))).item()
                kind = str(self._dtype).rpartition(".")[2]
                return (
                    f"{self._path}: {name} holds values up to {largest:.6g}, beyond what {kind} "
                    "can hold. Set model.dtype to bfloat16 or float32."
                )
        return f"{self._path}: the loaded parameter {parameter} is not finite."
