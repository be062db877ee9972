"""Linears outside attention and MLP: rounded to nearest when the checkpoint is assembled.

adaLN, the embedders and the final layer have no block whose output could judge a learned rounding,
so a recipe that quantizes them (`quantize: blocks+adaln` or `all`) rounds each weight to nearest,
on the group grid with `other_bits` bits. One modulation vector scales every token of a block and
its error adds up over the steps: eight bits are the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backend import mx
from ..network.blocks import Network
from ..planning.layer_bits import MLX_GROUPS
from .grids import Grid, Packed, fit_scales, pack, steps_of
from .rounding import nearest_codes


@dataclass(frozen=True)
class OtherLinears:
    """What rounding them gave.

    Attributes:
        packed: path -> quantized weight.
        regrouped: path -> group size, where the recipe's does not divide the inputs.
        kept: paths whose inputs no MLX group size divides; they keep their precision.
    """

    packed: dict[str, Packed]
    regrouped: dict[str, int]
    kept: list[str]


def round_to_nearest(weight: mx.array, grid: Grid, name: str = "The layer") -> Packed:
    """A weight (outputs, inputs) of any float dtype on the grid, each value to its nearest code."""
    scales = fit_scales(weight, grid, name)
    packed = pack(nearest_codes(steps_of(weight, scales), grid.levels), scales)
    mx.eval(packed.weight, packed.scales)
    return packed


def dividing_group_size(columns: int, wanted: int) -> int | None:
    """`wanted` if it divides `columns`, else the largest MLX group size that does, or None."""
    return next((size for size in (wanted, *MLX_GROUPS) if columns % size == 0), None)


def quantize_other_linears(model: Network, scope: str, bits: int, group_size: int) -> OtherLinears:
    """Rounds the linears that a scope adds to the blocks' own; see `blocks.other_linears`.

    Args:
        model: the full-precision MMDiT; it is left as it is.
        scope: one of `blocks.SCOPES`; "blocks" adds none.
        bits: of a weight (`other_bits`).
        group_size: the recipe's.
    """
    packed: dict[str, Packed] = {}
    regrouped: dict[str, int] = {}
    kept = []
    for linear in model.other_linears(scope):
        weight = linear.module.weight
        size = dividing_group_size(weight.shape[1], group_size)
        if size is None:
            kept.append(linear.path)
            continue
        if size != group_size:
            regrouped[linear.path] = size
        packed[linear.path] = round_to_nearest(weight, Grid("group", bits, size), linear.path)
    return OtherLinears(packed, regrouped, kept)
