"""Exports: one file with the MM-DiT and the VAE that stock DiffusionKit loads.

    diffusionkit-4bit   packed weights for the one key whose quantized branch stock DiffusionKit has
                        ("argmaxinc/mlx-stable-diffusion-3.5-large-4bit-quantized"): every linear
                        of the MM-DiT in 4 bits and groups of 64, under "model.diffusion_model."
                        and its module path, the VAE under "first_stage_model." in MLX's layout
    diffusionkit-fp16   the quantized values in float16 and the original single-file layout, which
                        loads under every key of the SD3 family (see `layout`)

What the recipe quantized keeps its bits: codes are stored, never rounded a second time. The 4-bit
layout has no place for a linear of full precision or of 8 bits, so those (adaLN, embedders) are
rounded to nearest on its grid; the export names them. Up to 6 bits float16 holds every value
exactly. Keys outside the two prefixes are ignored by the 4-bit loader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx.utils import tree_flatten

from ..backend import mx, nn
from ..errors import UserError
from ..models.layout import MMDIT_PREFIX, VAE_PREFIX, mmdit_to_single_file, vae_to_single_file
from ..models.load import load_vae_decoder, load_vae_encoder
from ..models.spec import ModelSpec
from ..network.diffusionkit import empty_network
from ..weights.block_files import packed_of
from ..weights.grids import Grid, Packed, dequantize, round_to_nearest
from ..weights.rotation import unrotate_weights
from .checkpoint import ROTATION, load_quantized, quantized_paths, read_checkpoint, smallest_dtype

BITS, GROUP_SIZE = 4, 64
KIND = "ditquant.export"


@dataclass(frozen=True)
class Export:
    """A file for stock DiffusionKit.

    Attributes:
        tensors: name in the file -> array.
        rerounded: module paths of linears that were rounded to nearest for this layout.
        inexact: names of tensors that float16 cannot hold exactly and were rounded to it.
    """

    tensors: dict[str, mx.array]
    rerounded: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)


def _parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def _vae(spec: ModelSpec) -> dict[str, dict[str, mx.array]]:
    """Halves of the VAE, "encoder" and "decoder" -> parameters in their file's precision."""
    halves = {
        "encoder": load_vae_encoder(spec, mx.float32),
        "decoder": load_vae_decoder(spec, mx.float32),
    }
    return {
        part: {name: smallest_dtype(tensor) for name, tensor in _parameters(module).items()}
        for part, module in halves.items()
    }


def in_groups_of_64(packed: Packed) -> Packed:
    """The same codes and values in groups of 64: scales of larger groups are repeated.

    Args:
        packed: with a group size that is a multiple of 64.
    """
    times = packed.group_size // GROUP_SIZE
    return Packed(
        packed.weight,
        mx.repeat(packed.scales, times, axis=1),
        mx.repeat(packed.biases, times, axis=1),
        packed.bits,
        GROUP_SIZE,
    )


def _four_bit_mmdit(spec: ModelSpec, folder: Path) -> Export:
    config, tensors = read_checkpoint(spec, folder)
    if ROTATION in config:
        raise UserError(
            f"The weights of {folder} are rotated, and stock DiffusionKit rotates no inputs: "
            "export diffusionkit-fp16 instead, whose weights are turned back."
        )
    quantization, quantized = config["quantization"], set(quantized_paths(tensors))
    model = empty_network(spec)
    learned = {linear.path for linear in model.linears}
    rerounded = []
    for linear in [*model.linears, *model.other_linears()]:
        path, columns = linear.path, linear.module.weight.shape[1]
        if columns % GROUP_SIZE:
            raise UserError(
                f"{path} of {spec.name} has {columns} inputs, which stock DiffusionKit's groups of "
                f"{GROUP_SIZE} do not divide: export diffusionkit-fp16 instead."
            )
        weight = tensors[f"{path}.weight"]
        if path in quantized:
            packed = packed_of(path, tensors, quantization.get(path) or quantization)
            if packed.bits == BITS and packed.group_size % GROUP_SIZE == 0:
                tensors |= _named(path, in_groups_of_64(packed))
                continue
            if path in learned:
                raise UserError(
                    f"{path} has {packed.bits} bits in groups of {packed.group_size}; stock "
                    f"DiffusionKit reads packed weights of {BITS} bits in groups of {GROUP_SIZE} "
                    "alone. Export diffusionkit-fp16 instead, which keeps the recipe's values, or "
                    f"use a recipe with bits: {BITS} and group_size: {GROUP_SIZE}."
                )
            weight = dequantize(packed)
        tensors |= _named(path, round_to_nearest(weight, Grid("group", BITS, GROUP_SIZE), path))
        rerounded.append(path)
    named = {MMDIT_PREFIX + name: tensor for name, tensor in tensors.items()}
    return Export(named, rerounded)


def _named(path: str, packed: Packed) -> dict[str, mx.array]:
    return {f"{path}.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}


def four_bit(spec: ModelSpec, folder: Path) -> Export:
    """The export diffusionkit-4bit of a native checkpoint; see `export_checkpoint`."""
    mmdit = _four_bit_mmdit(spec, folder)
    vae = {
        f"{VAE_PREFIX}{part}.{name}": tensor
        for part, parameters in _vae(spec).items()
        for name, tensor in parameters.items()
    }
    return Export({**mmdit.tensors, **vae}, mmdit.rerounded)


def _to_half(tensors: Mapping[str, mx.array]) -> Export:
    """All tensors in float16.

    Raises:
        UserError: a value that is finite, but not in float16.
    """
    halves, inexact = {}, []
    for name, tensor in tensors.items():
        halves[name] = tensor.astype(mx.float16)
        if tensor.dtype == mx.float16 or mx.all(halves[name].astype(tensor.dtype) == tensor).item():
            continue
        if not mx.all(mx.isfinite(halves[name])).item():
            raise UserError(
                f"{name} has values beyond float16 (65504). Export diffusionkit-4bit instead, or "
                "load the native checkpoint."
            )
        inexact.append(name)
    return Export(halves, inexact=inexact)


def float16(spec: ModelSpec, folder: Path) -> Export:
    """The export diffusionkit-fp16 of a native checkpoint; see `export_checkpoint`."""
    model = load_quantized(spec, folder, mx.float32)
    unrotate_weights(model, read_checkpoint(spec, folder)[0].get(ROTATION))
    tensors = mmdit_to_single_file(_parameters(model.module))
    vae = _vae(spec)
    tensors |= vae_to_single_file(vae["encoder"], "encoder")
    tensors |= vae_to_single_file(vae["decoder"], "decoder")
    return _to_half(tensors)


EXPORTS: dict[str, Callable[[ModelSpec, Path], Export]] = {
    "diffusionkit-4bit": four_bit,
    "diffusionkit-fp16": float16,
}


def export_checkpoint(spec: ModelSpec, folder: str | Path, name: str) -> Export:
    """A native checkpoint as a file for stock DiffusionKit.

    Args:
        spec: the model that was quantized; the VAE is taken from its files.
        folder: of the native checkpoint.
        name: one of `EXPORTS`.

    Raises:
        UserError: a model or a recipe that the layout has no place for, or no checkpoint.
    """
    if spec.shape.depth_unified:
        raise UserError(
            f"{spec.name} has unified blocks, for which the single-file layout of Stable Diffusion "
            "3 has no names: load the native checkpoint instead."
        )
    return EXPORTS[name](spec, Path(folder))
