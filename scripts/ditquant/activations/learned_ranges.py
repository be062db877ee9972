"""Activation ranges that a recipe learned together with its weights (`rounding: taqdit`, `lsq`).

A block's file keeps, for each array that its linears read, the step s_l and the zero point z_l of
an asymmetric quantizer of b_l bits. What was learned is the interval that its codes stand for,

    [low, high] = [-z_l s_l, (2^b_l - 1 - z_l) s_l],

and b bits of signed codes cover it with the scale s and the value z of code 0

    s = (high - low) / (2^b - 1),    z = low + 2^(b-1) s,

for b = b_l the learned grid itself. The learning saw all sigmas at once and knows one interval.
Where rows of a configuration are sigmas or groups of them, a row takes the interval times the width
that was measured in the row over the width of all of them: what share of the width was clipped is
learned, how it drifts is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..artifacts import load_metadata
from ..errors import UserError
from .input_statistics import InputStatistics
from .intervals import SMALLEST_RANGE
from .quant_params import largest_code

# Input name of the statistics -> (low, high).
Intervals = Mapping[str, tuple[float, float]]


def reader_of(name: str) -> str:
    """A linear that reads the array of this name, one of `blocks.shared_input`."""
    path, _, place = name.rpartition(".")
    return f"{path}.q_proj" if place == "qkv" else name


def learned_intervals(
    quantizers: Mapping[str, Sequence[float]], bits: int, input_of: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """What learned quantizers stand for: input name of the statistics -> (low, high).

    Args:
        quantizers: name by `blocks.shared_input` -> (step, zero).
        bits: of their codes.
        input_of: of the statistics, linear name -> input name.

    Raises:
        UserError: a quantizer of an input that was not measured.
    """
    found = {}
    for name, (step, zero) in quantizers.items():
        if reader_of(name) not in input_of:
            raise UserError(
                f"{name} has a learned range, but its activations were not measured: the blocks "
                "are of another model. Delete the recipe's folder and run again."
            )
        found[input_of[reader_of(name)]] = -zero * step, (2**bits - 1 - zero) * step
    return found


def load_intervals(
    paths: Sequence[str | Path], bits: int, input_of: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """`learned_intervals` of blocks' files; a block that kept other codes learned none.

    Args:
        paths: blocks/{block}.safetensors of one recipe.
        bits, input_of: see `learned_intervals`.

    Raises:
        UserError: another kind of file, or an input that was not measured.
    """
    quantizers: dict[str, Sequence[float]] = {}
    for path in paths:
        metadata = load_metadata(path, "ditquant.block_weights")
        quantizers |= json.loads(metadata["activations"])
    return learned_intervals(quantizers, bits, input_of)


def scaled_to_rows(
    measured: InputStatistics, interval: tuple[float, float], bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """(R,) half ranges and (R,) shifts of a learned interval, float64; see the module.

    Half ranges and shifts are those of `intervals.range_and_shift`: s = half / largest code.

    Args:
        measured: statistics over R rows.
        interval: (low, high).
        bits: b.
    """
    low, high = interval
    largest, smallest = measured.maximum.astype(np.float64), measured.minimum.astype(np.float64)
    pooled = largest.max() - smallest.min()
    # An input that never moves has no drift either.
    share = (largest - smallest) / pooled if pooled > 0 else np.ones_like(largest)
    scale = np.maximum(share * (high - low) / (2**bits - 1), SMALLEST_RANGE / largest_code(bits))
    return scale * largest_code(bits), share * low + 2 ** (bits - 1) * scale
