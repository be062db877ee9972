"""The native checkpoint: a folder that mlx-lm's conventions describe.

    config.json         what the checkpoint is, and under "quantization" the group size and bits of
                        its quantized linears: {"group_size", "bits", "mode", "<path>": {...}};
                        beside it what they take: see `stored_sizes`
    model.safetensors   tensors by DiffusionKit's module paths: "<path>.weight" (uint32), ".scales",
                        ".biases" and the layer's own ".bias" of quantized linears, and everything
                        else of the MM-DiT unquantized; metadata {"format": "mlx"}

`nn.quantize` with mlx-lm's class predicate (quantize where the file has "<path>.scales") makes a
plain MMDiT that loads it. Everything the MM-DiT needs is in the folder.

Where config.json has "rotation", the block linears' weights are rotated (`rotation`) and read
rotated inputs, which a plain MMDiT knows nothing of; only `load_quantized` loads that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten, tree_unflatten

from ..artifacts import load_tensors, read_json
from ..backend import mx
from ..errors import UserError
from ..job_times import counted_as
from ..models.load import reason
from ..models.spec import ModelSpec
from ..network.blocks import Linear, Network, rotation_of
from ..network.diffusionkit import empty_network
from ..weights.block_files import packed_of
from ..weights.grids import Packed, dequantize
from ..weights.rotation import mark_rotated
from .quantized import PackedLinear

FORMAT = "ditquant.checkpoint"
WEIGHTS_FORMAT = "ditquant.checkpoint_weights"
CONFIG_FILE, MODEL_FILE = "config.json", "model.safetensors"
# In config.json: the size of the rotation of the block linears' inputs.
ROTATION = "rotation"


def smallest_dtype(tensor: mx.array) -> mx.array:
    """float32 values that float16 holds exactly are stored as float16."""
    if tensor.dtype != mx.float32:
        return tensor
    half = tensor.astype(mx.float16)
    return half if mx.array_equal(half.astype(mx.float32), tensor).item() else tensor


def _quantized_linears(
    model: Network, quantized: Mapping[str, Packed]
) -> list[tuple[Linear, Packed]]:
    """In order of computation, then the linears outside the blocks."""
    linears = [*model.linears, *model.other_linears()]
    return [(linear, quantized[linear.name]) for linear in linears if linear.name in quantized]


def checkpoint_tensors(model: Network, quantized: Mapping[str, Packed]) -> dict[str, mx.array]:
    """The tensors of model.safetensors.

    Args:
        model: the full-precision MMDiT.
        quantized: linear's name -> quantized weight, for some or all of the linears.
    """
    tensors = {
        name: smallest_dtype(tensor) for name, tensor in tree_flatten(model.module.parameters())
    }
    for linear, packed in _quantized_linears(model, quantized):
        tensors[f"{linear.path}.weight"] = packed.weight
        tensors[f"{linear.path}.scales"] = packed.scales
        tensors[f"{linear.path}.biases"] = packed.biases
    return tensors


def quantization_config(model: Network, quantized: Mapping[str, Packed]) -> dict[str, Any]:
    """config.json's "quantization": the commonest size, and the paths that differ from it."""
    sizes = {
        linear.path: (packed.group_size, packed.bits)
        for linear, packed in _quantized_linears(model, quantized)
    }
    commonest = max(sorted(set(sizes.values())), key=list(sizes.values()).count)

    def entry(size: tuple[int, int]) -> dict[str, Any]:
        return {"group_size": size[0], "bits": size[1], "mode": "affine"}

    exceptions = {path: entry(size) for path, size in sizes.items() if size != commonest}
    return {**entry(commonest), **exceptions}


def stored_sizes(
    tensors: Mapping[str, mx.array], quantized: Mapping[str, Packed]
) -> dict[str, int | float]:
    """What a checkpoint takes, for config.json.

    Args:
        tensors: of the whole checkpoint.
        quantized: see `checkpoint_tensors`.

    Returns:
        "quantized_bytes" (codes, scales and biases of the quantized linears),
        "float16_bytes_of_quantized" (the same weights in float16), "quantized_ratio" (the one over
        the other: 4/16 + 2 x 16/64/16 = 0.28125 at 4 bits in groups of 64), and "total_bytes".
    """
    packed = sum(weight.num_bytes for weight in quantized.values())
    half = sum(2 * weight.num_weights for weight in quantized.values())
    return {
        "quantized_bytes": packed,
        "float16_bytes_of_quantized": half,
        "quantized_ratio": packed / half,
        "total_bytes": sum(int(tensor.nbytes) for tensor in tensors.values()),
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no quantized checkpoint: it has no {CONFIG_FILE}.")
    return read_json(path, FORMAT)


def read_checkpoint(
    spec: ModelSpec, folder: str | Path
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """config.json and the tensors of a native checkpoint.

    Raises:
        UserError: a checkpoint that is missing, truncated, or of another model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if config["model"] != spec.name:
        raise UserError(f"{folder} is a checkpoint of {config['model']}, not of {spec.name}.")
    return config, dict(load_tensors(folder / MODEL_FILE, WEIGHTS_FORMAT))


def quantized_paths(tensors: Mapping[str, mx.array]) -> list[str]:
    """Paths of the linears whose weights are packed."""
    return [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]


@counted_as("loading")
def load_quantized(
    spec: ModelSpec, folder: str | Path, dtype: mx.Dtype, packed: bool = False
) -> Network:
    """The quantized MM-DiT of a native checkpoint.

    Args:
        spec: the model that was quantized; only its configuration is used, not its files.
        folder: with config.json and model.safetensors.
        dtype: of the unquantized parameters and, unless `packed`, of the dequantized weights.
        packed: keep the weights packed (`PackedLinear`), which needs least memory; else they are
            dequantized once into plain linears, which is fastest.

    Raises:
        UserError: a checkpoint that is missing, truncated, or of another model.
    """
    config, tensors = read_checkpoint(spec, folder)
    model = empty_network(spec)
    mark_rotated(model, config.get(ROTATION))
    try:
        parameters = _parameters(model, tensors, config["quantization"], dtype, packed)
        model.module.load_weights(parameters)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{Path(folder) / MODEL_FILE} does not fit {spec.name}: {reason(error)}. Make it again."
        ) from error
    mx.eval(model.module.parameters())
    return model


def _parameters(
    model: Network,
    tensors: Mapping[str, mx.array],
    quantization: Mapping[str, Any],
    dtype: mx.Dtype,
    packed: bool,
) -> list[tuple[str, mx.array]]:
    """Names and arrays for `load_weights`; `packed` exchanges the model's linears first."""
    paths = quantized_paths(tensors)
    modules = dict(model.module.named_modules())
    parameters = dict(tensors)
    for path in paths:
        quantized = packed_of(path, tensors, quantization.get(path) or quantization)
        if packed:
            before = modules[path]
            layer = PackedLinear(quantized, before.get("bias"), rotation=rotation_of(before))
            model.module.update_modules(tree_unflatten([(path, layer)]))
        else:
            del parameters[f"{path}.scales"], parameters[f"{path}.biases"]
            parameters[f"{path}.weight"] = dequantize(quantized, dtype)
    storage = {f"{path}.{part}" for path in paths for part in ("weight", "scales", "biases")}
    return [
        (name, tensor if packed and name in storage else tensor.astype(dtype))
        for name, tensor in parameters.items()
    ]
