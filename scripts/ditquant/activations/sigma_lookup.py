"""What an activation configuration says of its inputs at any sigma.

Rows are looked up by the nearest measured sigma. A polynomial is evaluated at the sigma itself, but
not beyond the measured ones: there it takes the value at the end. All inputs are looked up at once,
because a step needs the numbers of hundreds, and one by one that would take a tenth of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .intervals import largest_code
from .polynomials import evaluate, variable_of
from .quant_config import LayerConfig, QuantConfig
from .single_tier import DYNAMIC


@dataclass(frozen=True)
class Numbers:
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


class InputNumbers(NamedTuple):
    """`Numbers` of n inputs, side by side.

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


def code_range(bits: int, unsigned: bool) -> tuple[int, int]:
    """The lowest and the highest code, see `Numbers`."""
    low = 0 if unsigned else -(2 ** (bits - 1))
    return low, low + 2**bits - 1


def side_by_side(numbers: Sequence[Numbers]) -> InputNumbers:
    """Numbers of single inputs as one `InputNumbers`."""
    scales = [np.atleast_1d([] if one.scale is None else one.scale) for one in numbers]
    return InputNumbers(
        tuple(one.bits for one in numbers),
        tuple(one.unsigned for one in numbers),
        np.concatenate(scales).astype(np.float64),
        tuple(len(one) for one in scales),
        [one.shift for one in numbers],
    )


def _by_row(entries: Sequence[Sequence[float]], rows: int) -> np.ndarray:
    """(rows, n) of n inputs that have one entry for all rows, or one each."""
    return np.stack([np.broadcast_to(np.asarray(entry), rows) for entry in entries], axis=1)


def _coefficients(entries: Sequence[Sequence[float]]) -> np.ndarray:
    """(degree + 1, n) of n polynomials, the shorter ones filled up with zeros."""
    terms = max(len(entry) for entry in entries)
    return np.array([[*entry, *[0.0] * (terms - len(entry))] for entry in entries]).T


class SigmaLookup:
    """The numbers of some layers' inputs by sigma.

    Args:
        layers: of the configuration, one for each input.
    """

    def __init__(self, config: QuantConfig, layers: Iterable[LayerConfig]):
        self._config = config
        layers = list(layers)
        rows = max(config.row_of) + 1
        self._bits = _by_row([layer.bits for layer in layers], rows).tolist()
        self._unsigned = tuple(layer.unsigned for layer in layers)
        self._channel_shifts = [
            layer.shift_of_channels if layer.channel_shift else None for layer in layers
        ]
        self._is_fitted = config.granularity == "polynomial"
        self._is_listed = not self._is_fitted and config.granularity not in DYNAMIC
        if self._is_fitted:
            self._log_ranges = _coefficients([layer.log_range for layer in layers])
            self._shifts = _coefficients([layer.shift_polynomial for layer in layers])
        else:
            self._shifts = _by_row([layer.shifts for layer in layers], rows)
        if self._is_listed:
            self._scales = _by_row([layer.scales for layer in layers], rows)
        self._groups = tuple(len(layer.factors_of_groups[0]) for layer in layers)
        self._factors = np.concatenate(
            [np.broadcast_to(one.factors_of_groups, (rows, count))
             for one, count in zip(layers, self._groups, strict=True)],
            axis=1,
        )  # fmt: skip

    def key(self, sigma: float) -> float | int:
        """Equal where numbers are: polynomials have others at every sigma, most at every row."""
        if self._is_fitted:
            return sigma
        return 0 if self._config.is_constant else self._config.row(sigma)

    def at(self, sigma: float) -> InputNumbers:
        """What holds at a sigma."""
        row = self._config.row(sigma)
        bits = tuple(self._bits[row])
        if self._is_fitted:
            measured = self._config.sigmas
            inside = min(max(sigma, measured[-1]), measured[0])
            x = float(variable_of(inside, self._config.variable))
            codes = np.array([largest_code(b) for b in bits])
            scales = np.exp(evaluate(self._log_ranges, x)) / codes
            shifts = evaluate(self._shifts, x).tolist()
        else:
            scales = self._scales[row] if self._is_listed else np.zeros(0)
            shifts = self._shifts[row].tolist()
        groups = self._groups
        if len(scales):
            scales = np.repeat(scales, groups) * self._factors[row]
        else:
            groups = (0,) * len(groups)
        shifts = [
            shift if of_channels is None else of_channels
            for shift, of_channels in zip(shifts, self._channel_shifts, strict=True)
        ]
        return InputNumbers(bits, self._unsigned, scales, groups, shifts)


def numbers_along(
    config: QuantConfig, layer: LayerConfig, sigmas: Iterable[float]
) -> list[Numbers]:
    """What holds for one layer at each of some sigmas."""
    lookup = SigmaLookup(config, [layer])
    found = []
    for sigma in sigmas:
        one = lookup.at(sigma)
        scale: float | np.ndarray | None = None
        if len(one.scales):
            scale = one.scales if layer.multipliers else float(one.scales[0])
        found.append(Numbers(one.bits[0], scale, one.shifts[0], layer.unsigned))
    return found


def numbers_at(config: QuantConfig, layer: LayerConfig, sigma: float) -> Numbers:
    """What holds for one layer at one sigma."""
    return numbers_along(config, layer, [sigma])[0]
