"""quant_config.json as inference reads it: bits, scale and shift of a layer at any sigma.

The file (format `ditquant.quant_config`, version 1) holds

    model, images, steps, sigmas      what was measured; sigmas descend
    configuration                     what made it: granularity, range, bits or tiers, ...
    groups                            granularity `group` only: the group of each measured sigma
    layers: name -> input             layers of the same input read one array
                    channels          its width
                    bits              of each row, or one for all
                    scales            of each row; not for `polynomial` and dynamic ranges
                    shifts            of each row, post-GELU inputs and learned ranges only
                    log_range         `polynomial` only: coefficients of ln(half range), constant
                                      first, in `configuration.variable`
                    shift_polynomial  `polynomial` only, post-GELU inputs: coefficients of the shift
                    unsigned          dynamic ranges only, post-GELU inputs: the shift is the lowest
                                      value, and codes are 0 to 2^b - 1
                    multipliers       `configuration.channel_group` only, not for dynamic ranges:
                                      for each row, the factor of the scale for each group of
                                      adjacent channels; one row for `polynomial`
                    channel_shift     `configuration.channel_shift` only, ordinary inputs: what is
                                      subtracted from each channel, at every sigma
                    input_amax        the largest |x| that was measured
                    learned           true where the range is what the recipe learned
                    shift_rules, shift_errors
                                      `shift: error` only: what was chosen by, see `intervals`
                    clip_shares       `range: measured` only: the share of the largest value at
                                      which each row's range ends
                    clip_errors       likewise: for each row the measured error with each share of
                                      `clips.shares`, over that of the whole range
    clips                             likewise: on which images and sigmas which shares were tried

A row is a measured sigma; with `group` a group; with `static` there is one. Files say what they are
in numbers of the sigma, never of the step: inference may use any number of steps or another shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import read_json
from ..errors import UserError
from .granularity import GRANULARITIES, Granularity, granularity_of
from .polynomials import VARIABLES

CONFIG_FORMAT = "ditquant.quant_config"
# What holds where a file does not say it.
_UNNAMED = {"granularity": "step", "variable": "sigma"}


@dataclass(frozen=True)
class LayerConfig:
    """How one linear's input is quantized at each of R rows (one entry alone counts for all rows).

    Attributes:
        input: layers of the same input name read one array and have equal numbers.
        channels: width of the input.
        bits, scales, shifts: R numbers each; scales are empty for polynomials and dynamic ranges.
        log_range: coefficients of ln(half range); empty unless the granularity is `polynomial`.
        shift_polynomial: coefficients of the shift, likewise.
        unsigned: see `QuantParams`.
        multipliers: factors of the scale for each group of adjacent channels, of each row or of
            all; empty where channels share one.
        channel_shift: of each channel, at every row; empty for none.
    """

    input: str
    channels: int
    bits: tuple[int, ...]
    scales: tuple[float, ...]
    shifts: tuple[float, ...]
    log_range: tuple[float, ...] = ()
    shift_polynomial: tuple[float, ...] = (0.0,)
    unsigned: bool = False
    multipliers: tuple[tuple[float, ...], ...] = ()
    channel_shift: tuple[float, ...] = ()

    @cached_property
    def shift_of_channels(self) -> np.ndarray:
        """`channel_shift` as (channels,) float32."""
        return np.array(self.channel_shift, dtype=np.float32)

    @cached_property
    def factors_of_groups(self) -> np.ndarray:
        """`multipliers` as (rows or 1, groups) float64; a one where channels share a scale."""
        return np.array(self.multipliers or [[1.0]], dtype=np.float64)


@dataclass(frozen=True)
class QuantConfig:
    """An activation configuration as `configs.make_config` wrote it.

    Attributes:
        model: name of the model whose activations were measured.
        sigmas: the measured sigmas, descending.
        layers: linear name -> numbers.
        granularity: how scales follow sigma.
        row_of: row of each measured sigma.
        channel_group: adjacent channels that share a scale; None: all of them do.
    """

    model: str
    sigmas: tuple[float, ...]
    layers: dict[str, LayerConfig]
    granularity: Granularity
    row_of: tuple[int, ...]
    channel_group: int | None = None

    @cached_property
    def is_constant(self) -> bool:
        """Whether numbers are the same at every sigma, as those of dynamic ranges mostly are."""
        return not self.granularity.is_continuous and all(
            len(entries) <= 1
            for layer in self.layers.values()
            for entries in (layer.bits, layer.scales, layer.shifts, layer.multipliers)
        )

    def row(self, sigma: float) -> int:
        """The row of the measured sigma that is nearest to `sigma`."""
        return self.row_of[int(np.abs(np.asarray(self.sigmas) - sigma).argmin())]


def _with_channels(where: str, layer: LayerConfig, entry: Mapping[str, Any]) -> LayerConfig:
    """The layer with what its file says of single channels and groups of them."""
    multipliers = tuple(tuple(row) for row in entry.get("multipliers", []))
    shift = tuple(entry.get("channel_shift", []))
    groups = {len(row) for row in multipliers} or {1}
    fits = (
        len(multipliers) in (0, 1, len(layer.bits))
        and len(groups) == 1
        and min(groups) > 0
        and layer.channels % max(groups) == 0
        and len(shift) in (0, layer.channels)
    )
    if not fits or not all(factor > 0 for row in multipliers for factor in row):
        raise UserError(
            f"{where}: multipliers must be positive, as many in each row, and divide the "
            f"{layer.channels} channels; channel_shift must have one number a channel. Delete the "
            "file and run again."
        )
    return replace(layer, multipliers=multipliers, channel_shift=shift)


def _layer(
    where: str, entry: Mapping[str, Any], rows: int, granularity: Granularity
) -> LayerConfig:
    fields = granularity.read(where, entry, rows)
    layer = _with_channels(where, LayerConfig(entry["input"], entry["channels"], **fields), entry)
    if not all(scale > 0 for scale in layer.scales) or not all(2 <= b <= 16 for b in layer.bits):
        raise UserError(f"{where}: scales must be positive and bits 2 to 16.")
    numbers = (
        *layer.scales, *layer.shifts, *layer.log_range, *layer.shift_polynomial,
        *layer.channel_shift, *(factor for row in layer.multipliers for factor in row),
    )  # fmt: skip
    if not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{where} holds a number that is not finite: delete the file, run again.")
    return layer


def _rows(path: str | Path, document: Mapping[str, Any], sigmas: Sequence[float]) -> list[int]:
    """Row of each measured sigma."""
    if "groups" not in document:
        return list(range(len(sigmas)))
    groups = [int(group) for group in document["groups"]]
    rises = [after - before for before, after in pairwise(groups)]
    if len(groups) != len(sigmas) or groups[0] != 0 or not set(rises) <= {0, 1}:
        raise UserError(
            f"{path}: groups must be one number for each of the {len(sigmas)} sigmas, from 0 and "
            "rising by 0 or 1. Delete the file and run again."
        )
    return groups


def parse_quant_config(document: Mapping[str, Any], path: str | Path) -> QuantConfig:
    """A configuration from its document; one that names no granularity lists its scales.

    Args:
        path: where the document lies, for messages.

    Raises:
        UserError: a granularity of another release, or entries that do not fit together.
    """
    try:
        made_by = {**_UNNAMED, **document.get("configuration", {})}
        if made_by["granularity"] not in GRANULARITIES or made_by["variable"] not in VARIABLES:
            raise UserError(
                f"{path} has scales by {made_by['granularity']!r} in {made_by['variable']!r}, "
                f"which this release does not know (it knows {', '.join(GRANULARITIES)}): delete "
                "it and run again."
            )
        granularity = granularity_of(made_by)
        sigmas = tuple(float(sigma) for sigma in document["sigmas"])
        if not sigmas or min(sigmas) <= 0 or list(sigmas) != sorted(sigmas, reverse=True):
            raise UserError(
                f"{path}: sigmas must be positive and descend. Delete the file and run again."
            )
        row_of = _rows(path, document, sigmas)
        layers = {
            name: _layer(f"{path}, {name}", entry, max(row_of) + 1, granularity)
            for name, entry in document["layers"].items()
        }
        group = made_by.get("channel_group")
        return QuantConfig(document["model"], sigmas, layers, granularity, tuple(row_of), group)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} lacks or garbles {error}: delete it and run again.") from error


def load_quant_config(path: str | Path) -> QuantConfig:
    """Reads quant_config.json or quant_config_multitier.json; see the module.

    Raises:
        UserError: another format, a granularity of another release, or entries that do not fit
            together.
    """
    return parse_quant_config(read_json(path, CONFIG_FORMAT), path)
