"""Grids that are tuned while their codes stay: offsets of scales and biases, and their storage.

With the mean code m of a group, code q of a packed weight stands for

    s (1 + d) (q - m) + (s m + b) + |s| e

where d and e start at 0. So both offsets count in units of the group's own scale, whatever the
layer, and around the mean code they hardly depend on each other. Groups of a row share their
offsets on the channel grid, which has one scale for each row.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backend import mx
from ..network.blocks import Linear
from .grids import Packed, stored_affine, unpack_codes


@dataclass(frozen=True)
class TunedGrid:
    """A packed linear whose grid is tuned.

    Attributes:
        linear: of the network that is tuned.
        packed: its quantized weight at the start.
        codes: (rows, groups, group size) uint8.
        means: (rows, groups) float32 mean codes; on the channel grid those of the rows.
        scales, centers: (rows, groups) float32, s and s m + b.
        columns: of the offsets: groups, or 1 on the channel grid.
    """

    linear: Linear
    packed: Packed
    codes: mx.array
    means: mx.array
    scales: mx.array
    centers: mx.array
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of each of the two offsets."""
        return (self.scales.shape[0], self.columns)


def tuned_grid(linear: Linear, packed: Packed, kind: str) -> TunedGrid:
    """Args: kind: "group" or "channel" (`grids.Grid`)."""
    rows, groups = packed.scales.shape
    codes = unpack_codes(packed.weight, packed.bits).reshape(rows, groups, packed.group_size)
    axes = (1, 2) if kind == "channel" else (2,)
    means = mx.mean(codes.astype(mx.float32), axis=axes, keepdims=True)
    means = mx.broadcast_to(means.reshape(rows, -1), (rows, groups))
    scales = packed.scales.astype(mx.float32)
    centers = scales * means + packed.biases.astype(mx.float32)
    grid = TunedGrid(
        linear, packed, codes, means, scales, centers, 1 if kind == "channel" else groups
    )
    mx.eval(codes, means, scales, centers)
    return grid


def _moved(grid: TunedGrid, spread: mx.array, shift: mx.array) -> tuple[mx.array, mx.array]:
    scales = grid.scales * (1 + spread)
    return scales, grid.centers + mx.abs(grid.scales) * shift


def tuned_weight(grid: TunedGrid, spread: mx.array, shift: mx.array) -> mx.array:
    """(rows, columns) float32 values at offsets d = `spread` and e = `shift`, differentiable."""
    scales, centers = _moved(grid, spread, shift)
    values = scales[..., None] * (grid.codes - grid.means[..., None]) + centers[..., None]
    return values.reshape(grid.codes.shape[0], -1)


def stored_grid(grid: TunedGrid, spread: mx.array, shift: mx.array) -> Packed:
    """The same codes on the tuned grid as it is stored: exact where `grids` are.

    What a scale loses in its storage leaves the mean code's value where it is.
    """
    scales, biases = stored_affine(*_moved(grid, spread, shift), grid.means, grid.packed.bits)
    mx.eval(scales, biases)
    packed = grid.packed
    return Packed(packed.weight, scales, biases, packed.bits, packed.group_size)
