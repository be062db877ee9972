"""Blocks of small random models with their data, ready to be quantized, and complete recipes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ditquant.backend import mx
from ditquant.network.blocks import Network
from ditquant.planning.recipes import ROUNDINGS, Recipe
from ditquant.weights.block_io import BlockData, read_block
from ditquant.weights.reconstruct import BlockProblem, block_problem
from ditquant.weights.rotation import rotate

from .block_data import write_block_io
from .models import build_network

ROOT = Path(__file__).parents[2]
BLOCKS = ("mm00", "mm01")
# Short, and for blocks of 64 channels.
_SHORT = {
    "group_size": 32, "iterations": 60, "batch_size": 8, "learning_rate": 0.15,
    "regularizer": 1000.0, "warmup": 0.2,
}  # fmt: skip


@cache
def _recipe_defaults() -> dict[str, Any]:
    schema = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text("utf-8"))
    properties = schema["$defs"]["recipe"]["properties"]
    return {name: one["default"] for name, one in properties.items() if "default" in one}


def whole_recipe(rounding: str, **options: Any) -> Recipe:
    """A recipe with the schema's defaults; options that it does not read are left out."""
    every = {**_recipe_defaults(), **options, "rounding": rounding}
    return Recipe.from_params(ROUNDINGS[rounding].read_of(every))


def full_recipe(rounding: str, **options: Any) -> Recipe:
    """A recipe as a block's job gets it, short and for blocks of 64 channels."""
    return whole_recipe(rounding, **{**_SHORT, **options}).of_block()


def tuned_recipe(rounding: str = "rtn", **options: Any) -> Recipe:
    """A whole recipe that is tuned, for blocks of 64 channels."""
    return whole_recipe(rounding, **{**_SHORT, **options})


def write_images(
    folder: Path, model: Network, images: int = 5, dtype: mx.Dtype = mx.float32
) -> list[Path]:
    """Block inputs and outputs of some random trajectories, 8 rows each."""
    return [
        write_block_io(folder / f"{image}.safetensors", model, seed=image, dtype=dtype)
        for image in range(images)
    ]


def make_problem(
    folder: Path,
    recipe: Recipe,
    block: str = "mm00",
    dtype: mx.Dtype = mx.float32,
    **model: Any,
) -> BlockProblem:
    """A block of a random MMDiT of two blocks; the last of 5 images is held out."""
    network = build_network(seed=4, dtype=dtype, float16_dtype=dtype, **model)
    network.module.set_dtype(dtype)
    data = read_block(write_images(folder, network, dtype=dtype), BLOCKS, block)
    rotate(network, recipe.rotation)
    return block_problem(network, block, data, recipe)


def behind_noise(data: BlockData, size: float = 0.05) -> BlockData:
    """The data with a prefix: its inputs, as errors of the blocks before would change them."""
    keys = mx.random.split(mx.random.key(9), len(data.inputs))
    prefix = tuple(
        stream + size * mx.std(stream) * mx.random.normal(stream.shape, key=key)
        for stream, key in zip(data.inputs, keys, strict=True)
    )
    mx.eval(prefix)
    return replace(data, prefix=prefix)
