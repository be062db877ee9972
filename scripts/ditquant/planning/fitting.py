"""Checks that recipes and activation configurations fit the linears of the model.

The workflow calls this while it plans, so that a mistake ends the plan and not a later job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ..errors import UserError
from .recipes import MLX_GROUPS, Recipe

# Block linear's name -> (outputs, inputs), as `models.shapes` has them.
Linears = Mapping[str, tuple[int, int]]


def _dividing(inputs: int) -> str:
    sizes = [str(size) for size in reversed(MLX_GROUPS) if inputs % size == 0]
    return f"use {' or '.join(sizes)}" if sizes else "none of MLX's sizes does"


def check_recipe(key: str, recipe: Recipe, linears: Linears, model: str) -> None:
    """Checks that every block linear can be quantized as a recipe says.

    Linears outside the blocks (`quantize`) need no check: they take another group size where the
    recipe's does not divide their inputs, or keep their precision.

    Args:
        key: of the recipe in the configuration, "recipes.fine".
        linears: all block linears of the model.
        model: its name, for the messages.

    Raises:
        UserError: a pattern of `layers` fits no linear, or a group size or rotation does not divide
            a width; names recipe, key, linear and width.
    """
    for pattern in recipe.layers:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise UserError(
                f"{key}.layers: no linear of {model} has a name like {pattern!r}. "
                f"The names are {_summary(linears)}."
            )
    grids = {name: recipe.grid_of(name) for name in linears}
    others = recipe.others is not None and recipe.others.quantize != "blocks"
    if not any(grids.values()) and not others:
        raise UserError(f"{key}.layers: it leaves every linear of {model} alone.")
    for name, (_, inputs) in linears.items():
        if recipe.rotation and inputs % recipe.rotation:
            raise UserError(
                f"{key}.rotation: {name} of {model} has {inputs} inputs, which a rotation of "
                f"{recipe.rotation} does not divide. Use a smaller power of two that does, or null."
            )
        grid = grids[name]
        if grid is not None and grid.storage_size(inputs) is None:
            sizes = ", ".join(map(str, grid.storage_sizes))
            raise UserError(
                f"{key}.group_size: {name} of {model} has {inputs} inputs, which groups of {sizes} "
                f"do not divide: {_dividing(inputs)}, or leave the linear alone with layers."
            )


def _summary(linears: Iterable[str]) -> str:
    """Names in short: blocks that are alike, and what stands behind their names."""
    places: dict[str, list[str]] = {}
    for name in linears:
        block, _, place = name.partition(".")
        places.setdefault(block, []).append(place)
    alike: dict[tuple[str, ...], list[str]] = {}
    for block, found in places.items():
        alike.setdefault(tuple(found), []).append(block)
    parts = []
    for behind, blocks in alike.items():
        which = blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
        parts.append(f"{which} followed by .{', .'.join(behind)}")
    return "; ".join(parts)


def check_channel_group(key: str, size: int | None, linears: Linears, model: str) -> None:
    """Checks that groups of channels that share a scale fill what every block linear reads.

    Args:
        key: of the activation configuration, "activations" or "activations.variants.a6".
        size: its `channel_group`.

    Raises:
        UserError: they do not; names key, linear and width.
    """
    for name, (_, inputs) in linears.items():
        if size is not None and inputs % size:
            raise UserError(
                f"{key}.channel_group: {name} of {model} has {inputs} inputs, which groups of "
                f"{size} do not fill. Use another size, or null."
            )
