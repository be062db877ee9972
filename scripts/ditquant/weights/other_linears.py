"""Linears outside attention and MLP: rounded to nearest when the checkpoint is assembled.

adaLN, the embedders and the final layer have no block whose output could judge a learned rounding,
so a recipe that quantizes them (`quantize: blocks+adaln` or `all`) rounds each weight to nearest,
on the group grid with `other_bits` bits. One modulation vector scales every token of a block and
its error adds up over the steps: eight bits are the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..network.blocks import Network
from ..planning.recipes import MLX_GROUPS, Grid, Recipe
from .grids import Packed, round_to_nearest


@dataclass(frozen=True)
class RoundedLinears:
    """What rounding them gave.

    Attributes:
        packed: path -> quantized weight.
        regrouped: path -> group size, where the recipe's does not divide the inputs.
        kept: paths whose inputs no MLX group size divides; they keep their precision.
    """

    packed: dict[str, Packed]
    regrouped: dict[str, int]
    kept: list[str]


def quantize_other_linears(model: Network, recipe: Recipe) -> RoundedLinears:
    """Rounds the linears that a recipe quantizes beside the blocks' own (`blocks.other_linears`).

    Args:
        model: the full-precision MMDiT; it is left as it is.
        recipe: a whole one, not that of a block.
    """
    if recipe.others is None:
        raise ValueError("the recipe of a block says nothing of other linears")
    packed: dict[str, Packed] = {}
    regrouped: dict[str, int] = {}
    kept = []
    for linear in model.other_linears(recipe.others.quantize):
        weight = linear.module.weight
        sizes = (recipe.group_size, *MLX_GROUPS)
        size = next((size for size in sizes if weight.shape[1] % size == 0), None)
        if size is None:
            kept.append(linear.path)
            continue
        if size != recipe.group_size:
            regrouped[linear.path] = size
        grid = Grid("group", recipe.others.other_bits, size)
        packed[linear.path] = round_to_nearest(weight, grid, linear.path)
    return RoundedLinears(packed, regrouped, kept)
