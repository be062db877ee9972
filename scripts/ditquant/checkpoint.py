"""The native checkpoint: a folder that mlx-lm's conventions describe.

    config.json         what the checkpoint is, and under "quantization" the group size and bits of
                        its quantized linears: {"group_size", "bits", "mode", "<path>": {...}}
    model.safetensors   tensors by DiffusionKit's module paths: "<path>.weight" (uint32), ".scales",
                        ".biases" and the layer's own ".bias" of quantized linears, and everything
                        else of the MM-DiT unquantized; metadata {"format": "mlx"}

`nn.quantize` with mlx-lm's class predicate (quantize where the file has "<path>.scales") makes a
plain MMDiT that loads it. Everything the MM-DiT needs is in the folder.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten, tree_unflatten

from .artifacts import load_metadata, load_tensors, read_json
from .backend import import_diffusionkit, mx, nn
from .blocks import all_linears
from .errors import UserError
from .grids import Packed, dequantize
from .models.load import mmdit_config
from .models.spec import ModelSpec

FORMAT = "ditquant.checkpoint"
CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"


class PackedLinear(nn.QuantizedLinear):
    """A quantized linear for the (B, tokens, 1, inputs) streams of an MM-DiT.

    Rows are joined before the product (CUDA would make one small product of each), and the output
    has the input's dtype, which float16 scales would otherwise promote.
    """

    def __call__(self, x: mx.array) -> mx.array:
        rows = super().__call__(x.reshape(-1, x.shape[-1]))
        return rows.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _packed_of(name: str, tensors: Mapping[str, mx.array], size: Mapping[str, Any]) -> Packed:
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
        tensors = load_tensors(file)
        sizes = json.loads(load_metadata(file)["quantization"])
        for name, size in sizes.items():
            packed[name] = _packed_of(name, tensors, size)
    return packed


def _smallest_dtype(tensor: mx.array) -> mx.array:
    """float32 values that float16 holds exactly are stored as float16."""
    if tensor.dtype != mx.float32:
        return tensor
    half = tensor.astype(mx.float16)
    return half if mx.array_equal(half.astype(mx.float32), tensor).item() else tensor


def checkpoint_tensors(model: nn.Module, quantized: Mapping[str, Packed]) -> dict[str, mx.array]:
    """The tensors of model.safetensors.

    Args:
        model: the full-precision MMDiT.
        quantized: linear's name -> quantized weight, for some or all of the block linears.
    """
    tensors = {name: _smallest_dtype(tensor) for name, tensor in tree_flatten(model.parameters())}
    for linear in all_linears(model):
        if linear.name in quantized:
            packed = quantized[linear.name]
            tensors[f"{linear.path}.weight"] = packed.weight
            tensors[f"{linear.path}.scales"] = packed.scales
            tensors[f"{linear.path}.biases"] = packed.biases
    return tensors


def quantization_config(model: nn.Module, quantized: Mapping[str, Packed]) -> dict[str, Any]:
    """config.json's "quantization": the commonest size, and the paths that differ from it."""
    sizes = {
        linear.path: (quantized[linear.name].group_size, quantized[linear.name].bits)
        for linear in all_linears(model)
        if linear.name in quantized
    }
    commonest = max(sorted(set(sizes.values())), key=list(sizes.values()).count)

    def entry(size: tuple[int, int]) -> dict[str, Any]:
        return {"group_size": size[0], "bits": size[1], "mode": "affine"}

    exceptions = {path: entry(size) for path, size in sizes.items() if size != commonest}
    return {**entry(commonest), **exceptions}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no quantized checkpoint: it has no {CONFIG_FILE}.")
    return read_json(path, FORMAT)


def _packed_linear(linear: nn.Linear, packed: Packed) -> PackedLinear:
    outputs, inputs = linear.weight.shape
    layer = PackedLinear(
        inputs, outputs, "bias" in linear, packed.group_size, packed.bits, mode="affine"
    )
    layer.weight, layer.scales, layer.biases = packed.weight, packed.scales, packed.biases
    return layer


def load_quantized(
    spec: ModelSpec, folder: str | Path, dtype: mx.Dtype, packed: bool = False
) -> nn.Module:
    """The quantized MM-DiT of a native checkpoint.

    Args:
        spec: the model that was quantized; only its configuration is used, not its files.
        folder: with config.json and model.safetensors.
        dtype: of the unquantized parameters and, unless `packed`, of the dequantized weights.
        packed: keep the weights packed (`PackedLinear`), which needs least memory; else they are
            dequantized once into plain linears, which is fastest on a CPU.

    Raises:
        UserError: a checkpoint that is missing, truncated, or of another model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if config["model"] != spec.name:
        raise UserError(f"{folder} is a checkpoint of {config['model']}, not of {spec.name}.")
    tensors = load_tensors(folder / MODEL_FILE)
    import_diffusionkit()
    model = importlib.import_module("diffusionkit.mlx.mmdit").MMDiT(mmdit_config(spec))
    try:
        parameters = _parameters(model, tensors, config["quantization"], dtype, packed)
        model.load_weights(parameters)
    except (KeyError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{folder / MODEL_FILE} does not fit {spec.name}: {reason}. Make it again."
        ) from error
    return model


def _parameters(
    model: nn.Module,
    tensors: Mapping[str, mx.array],
    quantization: Mapping[str, Any],
    dtype: mx.Dtype,
    packed: bool,
) -> list[tuple[str, mx.array]]:
    """Names and arrays for `load_weights`; `packed` exchanges the model's linears first."""
    paths = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    modules = dict(model.named_modules())
    parameters = dict(tensors)
    for path in paths:
        quantized = _packed_of(path, tensors, quantization.get(path) or quantization)
        if packed:
            layer = _packed_linear(modules[path], quantized)
            model.update_modules(tree_unflatten([(path, layer)]))
        else:
            del parameters[f"{path}.scales"], parameters[f"{path}.biases"]
            parameters[f"{path}.weight"] = dequantize(quantized, dtype)
    storage = {f"{path}.{part}" for path in paths for part in ("weight", "scales", "biases")}
    return [
        (name, tensor if packed and name in storage else tensor.astype(dtype))
        for name, tensor in parameters.items()
    ]
