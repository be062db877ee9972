"""The numbers that quantize one input: x ≈ s q + z with codes q of b bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class QuantParams:
    """How one input is quantized at one sigma.

    Attributes:
        bits: b.
        scale: s, one number or one for each of some equally large groups of adjacent channels
            (groups,); None where it follows from the values at run time.
        shift: z, the value of code 0; one number or one for each channel.
        unsigned: codes are 0 to 2^b - 1, not -2^(b-1) to 2^(b-1) - 1.
    """

    bits: int
    scale: float | np.ndarray | None
    shift: float | np.ndarray
    unsigned: bool = False


class StackedParams(NamedTuple):
    """`QuantParams` of n inputs, side by side.

    Attributes:
        bits, unsigned: of each input.
        scales: (all groups,), one input's behind the other's; empty where they follow at run time.
        groups: how many scales each input has.
        shifts: of each input, a number or (channels,).
    """

    bits: tuple[int, ...]
    unsigned: tuple[bool, ...]
    scales: np.ndarray
    groups: tuple[int, ...]
    shifts: list[float | np.ndarray]


def largest_code(bits: int) -> int:
    """qmax = 2^(bits - 1) - 1."""
    return 2 ** (bits - 1) - 1


def code_range(bits: int, unsigned: bool) -> tuple[int, int]:
    """The lowest and the highest code, see `QuantParams`."""
    low = 0 if unsigned else -(2 ** (bits - 1))
    return low, low + 2**bits - 1


def stacked(params: Sequence[QuantParams]) -> StackedParams:
    """Those of single inputs side by side."""
    scales = [np.atleast_1d([] if one.scale is None else one.scale) for one in params]
    return StackedParams(
        tuple(one.bits for one in params),
        tuple(one.unsigned for one in params),
        np.concatenate(scales).astype(np.float64),
        tuple(len(one) for one in scales),
        [one.shift for one in params],
    )
